"""The slots of an engine: how large a call needs them, and making them within the memory there is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from onpolicy_sdft.rollout.attention import KernelName, SlotAttention
from onpolicy_sdft.rollout.blending import Pairs
from onpolicy_sdft.rollout.drafts import MAX_NGRAM
from onpolicy_sdft.rollout.kernels import make_kernels
from onpolicy_sdft.rollout.memory import Budget, choose_num_slots, show_bytes
from onpolicy_sdft.rollout.sampling import BatchSamplingParams, Vocabulary
from onpolicy_sdft.rollout.slots import LayerShape, SlotCache, SlotTexts, bytes_per_position
from onpolicy_sdft.rollout.speculation import WIDTHS
from onpolicy_sdft.types import RecordOptions, RolloutRequest, SamplingParams

logger = logging.getLogger(__name__)

_LENGTH_STEP = 64  # slots are a multiple of this many positions long, so that calls of like lengths share a pool
_A_TEXT = MAX_NGRAM + 1  # what :func:`~onpolicy_sdft.rollout.drafts.lay_out` adds to a text: its lead, a separator


@dataclass(frozen=True, slots=True)
class PoolNeeds:
    """What a call needs of its slots."""

    num_slots: int  # that all requests would take at once
    least: int  # slots of one request, at most
    length: int  # positions of a slot
    longest: int  # tokens of a completion, and a forward's width behind it
    source: int  # tokens of a row of draft texts
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(requests: Sequence[RolloutRequest], max_drafts: int, dtype: torch.dtype, device: torch.device) -> PoolNeeds:
        """Read them off the requests."""
        # A forward may write this much behind what is kept: its drafts, or the widest step that is timed.
        width = max(max_drafts + 1, max(WIDTHS))
        longest = max(request.max_new_tokens for request in requests) + width
        needed = max(len(prompt) + request.max_new_tokens for request in requests for prompt in request.prompts) + width
        texts = max(sum(len(text) + _A_TEXT for text in request.draft_token_ids) for request in requests)
        length = -(-needed // _LENGTH_STEP) * _LENGTH_STEP
        counts = [len(request.prompts) for request in requests]
        return PoolNeeds(sum(counts), max(counts), length, longest, texts + longest + _A_TEXT, dtype, device)

    def at_least(self, pool: Pool) -> PoolNeeds:
        """Return needs that also hold what another pool had room for."""
        return replace(
            self,
            length=max(self.length, pool.cache.length),
            longest=max(self.longest, pool.texts.logprobs.shape[1]),
            source=max(self.source, pool.texts.draft_source.shape[1]),
        )


@dataclass
class Pool:
    """Slots with what stands in them; kept between calls."""

    cache: SlotCache
    texts: SlotTexts
    attention: SlotAttention
    batch_params: BatchSamplingParams
    bytes_per_position: int
    recorded: dict[str, torch.Tensor] = field(default_factory=dict)  # buffers of what some calls record
    pairs: Pairs | None = None  # buffers of blended requests, from the first call that has any
    least: int = 1  # slots that a request of the call may take

    @property
    def num_slots(self) -> int:
        """Completions at once."""
        return self.cache.num_slots

    def describe(self) -> str:
        """Say how large it is."""
        taken = show_bytes(self.num_slots * self.cache.length * self.bytes_per_position)
        return f"{self.num_slots} slots of {self.cache.length} positions ({taken} of keys and values)"

    def fits(self, needs: PoolNeeds, asked: int | None, budget: Budget, *, may_be_more: bool = False) -> bool:
        """Whether a call can use these slots, and would not get another number of them.

        With ``may_be_more``, slots beyond those it would get are no reason to make others, where the budget has room:
        steps that were captured over them stay good.
        """
        if self.cache.length < needs.length or self.cache.keys[0].dtype != needs.dtype:
            return False
        wanted = choose_num_slots(
            asked, needs.num_slots, needs.length, self.bytes_per_position, budget, needs.device, needs.least
        )
        within = self.num_slots * self.cache.length * self.bytes_per_position <= budget.num_bytes
        enough = self.num_slots == wanted or (may_be_more and self.num_slots > wanted and within)
        return self._is_wide_enough(needs) and enough

    def holds(self, request: RolloutRequest, max_drafts: int) -> bool:
        """Whether these slots are large enough for a request that joins a running call."""
        needs = PoolNeeds.of([request], max_drafts, self.cache.keys[0].dtype, self.texts.tokens.device)
        return self._is_wide_enough(needs) and self.cache.length >= needs.length and self.num_slots >= needs.least

    def _is_wide_enough(self, needs: PoolNeeds) -> bool:
        return self.texts.logprobs.shape[1] >= needs.longest and self.texts.draft_source.shape[1] >= needs.source

    def make_room_for(self, record: RecordOptions, needs: PoolNeeds, hidden_size: int) -> None:
        """Give a call buffers for what it records; those of the call before stay where they are if they fit."""
        texts, rows, longest = self.texts, self.num_slots + 1, self.texts.logprobs.shape[1]
        k = record.top_k
        texts.hidden = self._buffer("hidden", (rows, longest, hidden_size), needs.dtype) if record.hidden else None
        texts.top_token_ids = self._buffer("ids", (rows, longest, k), torch.int64) if k else None
        texts.top_logprobs = self._buffer("logprobs", (rows, longest, k), texts.logprobs.dtype) if k else None

    def pair_up(self, *, is_budgeted: bool) -> None:
        """Let slots have partners in this call; the buffers of an earlier one are used again."""
        texts = self.texts
        if self.pairs is None:
            self.pairs = Pairs.make(self.num_slots, texts.logprobs.shape[1], texts.logprobs.dtype, texts.tokens.device)
        if texts.pairs is None:
            self.pairs.reset()
            texts.pairs = self.pairs
        texts.pairs.is_budgeted = is_budgeted

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        kept = self.recorded.get(name)
        if kept is None or kept.shape != shape or kept.dtype != dtype:
            kept = self.recorded[name] = torch.zeros(shape, dtype=dtype, device=self.texts.tokens.device)
        return kept

    def addresses(self) -> tuple[int, ...]:
        """Return where everything lies that every captured step reads or writes."""
        recorded = {"hidden", "top_token_ids", "top_logprobs", "pairs"}  # of some calls only: each step knows which
        owners = ((owner, each.name) for owner in (self.batch_params, self.texts) for each in fields(owner))
        held = [getattr(owner, name) for owner, name in owners if name not in recorded]
        found = [*self.cache.keys, *self.cache.values, *held]
        return tuple(each.data_ptr() for each in found if isinstance(each, torch.Tensor))


def make_pool(
    needs: PoolNeeds,
    grown: PoolNeeds,
    shapes: Sequence[LayerShape],
    asked: int | None,
    budget: Budget,
    kernels: KernelName,
) -> tuple[Pool, Budget]:
    """Allocate slots; memory that cannot be had after all halves their number, and is counted on no more.

    Their number follows from what the call needs; they are made as large as ``grown`` where the budget has room.

    Raises:
        ConfigError: If not even one request fits into the budget.
    """
    a_position = bytes_per_position(shapes, needs.dtype)
    wide = torch.float64 if needs.dtype == torch.float64 else torch.float32
    while True:
        num_slots = choose_num_slots(
            asked, needs.num_slots, needs.length, a_position, budget, needs.device, needs.least
        )
        made = grown if num_slots * grown.length * a_position <= budget.num_bytes else needs
        try:
            how = make_kernels(kernels, made.length, needs.device)
            cache = SlotCache(shapes, num_slots, made.length, needs.dtype, needs.device, how)
            texts = SlotTexts.make(num_slots, made.length, made.longest, made.source, wide, needs.device)
            batch_params = BatchSamplingParams.of([SamplingParams()] * (num_slots + 1), Vocabulary(1), needs.device)
            return Pool(cache, texts, SlotAttention(cache), batch_params, a_position), budget
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if num_slots == needs.least or "memory" not in str(error).lower():
                raise
            half = max(needs.least, num_slots // 2)
            budget = Budget(half * needs.length * a_position, "what could be allocated")
            logger.info(f"rollout: {num_slots} slots could not be allocated, trying {half}")
