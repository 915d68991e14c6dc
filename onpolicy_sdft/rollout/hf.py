"""The plain backend: transformers' ``generate``, batched by length. Slow and simple: the oracle of others.

``generate`` runs greedily; a last logits processor adds the keyed noise, so its argmax is our draw and no
global random state is used. The processor list is ours: ``generate`` drops temperature, top-k and top-p when it
does not sample itself.

A blended completion has two rows, one behind each of its prompts; both are given the token drawn from the mix.

Shape letters: B completions of a batch, R rows (B, and behind them one for each that is blended), T prompt positions,
V vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.rollout.backend import NO_LISTENER, NO_RECORD, Listener, OnProgress, RolloutStats, ignore_progress
from onpolicy_sdft.rollout.blending import mix, within_budget
from onpolicy_sdft.rollout.noise import key_words
from onpolicy_sdft.rollout.sampling import Draw, Vocabulary, cut_at_terminator, draw, likeliest, logprobs_at, warpers
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.shapes import round_tokens
from onpolicy_sdft.types import (
    NoiseKey,
    Ranks,
    RecordOptions,
    Rollout,
    RolloutProgress,
    RolloutRequest,
    SamplingParams,
    TopLogprobs,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CollectiveDecoding:
    """How ranks write with weights that are divided among them: all in every forward, as long as one has to."""

    ranks: Ranks
    inside: Callable[[Callable[[], Any]], Any]  # calls a function that reads the divided model


class HFBackend:
    """Rollouts through ``PreTrainedModel.generate`` on the weights being trained.

    Args:
        model: The live model, adapters in place.
        stop_token_ids: Token ids that end a completion.
        pad_token_id: Any valid id; padding is masked.
        batch_size: Completions written at once.
        merge_adapter: Decode from a merged scratch copy of the LoRA-targeted linears.
        together: How ranks write together; None: each for itself.
        vocabulary: The ids that have a token: no other is drawn. None: all have one.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        stop_token_ids: Sequence[int],
        pad_token_id: int,
        batch_size: int,
        merge_adapter: bool = True,
        together: CollectiveDecoding | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.together = together
        self.vocabulary = vocabulary
        self.model = model
        self.stop_token_ids = tuple(stop_token_ids)
        self.pad_token_id = pad_token_id
        self.batch_size = batch_size
        self.weights = LocalWeights(model, merge_adapter, "none")
        self.stats = RolloutStats()

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_progress: OnProgress = ignore_progress,
        record: RecordOptions = NO_RECORD,
        listener: Listener = NO_LISTENER,
    ) -> list[Rollout]:
        """Write one completion per request; see :class:`~onpolicy_sdft.rollout.backend.RolloutBackend`."""
        self.stats = RolloutStats()
        started = time.perf_counter()
        found: list[Rollout | None] = [None] * len(requests)
        with no_trace(self.model), self.weights.open():
            left = _by_length(requests)
            num_batches = -(-len(left) // self.batch_size)
            num_idle = 0 if self.together is None else max(self.together.ranks.gather(num_batches)) - num_batches
            while left:
                batch = [requests[row] for row in left[: self.batch_size]]
                written = self._write_or_halve(batch, params, on_progress, record)
                for row, rollout in zip(left, written, strict=False):
                    found[row] = rollout
                    listener.ended(row, rollout)
                left = left[len(written) :]
            for _ in range(num_idle):
                self._dummy_forward()
        self.stats.num_tokens = sum(len(rollout.token_ids) for rollout in found if rollout is not None)
        self.stats.total_seconds = time.perf_counter() - started
        return [rollout for rollout in found if rollout is not None]

    def release(self) -> bool:
        """Give nothing back: nothing is kept between calls."""
        return False

    def state(self) -> dict[str, Any]:
        """Return nothing: shapes follow from the requests."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore nothing."""

    def _dummy_forward(self) -> None:
        """Write an idle batch beside a rank that has more to write: it needs the others' parts of the weights."""
        idle = RolloutRequest((self.pad_token_id,), NoiseKey(0, 0, "idle"), max_new_tokens=1)
        self._write([idle], SamplingParams(), ignore_progress, NO_RECORD)

    def _write_or_halve(
        self, requests: list[RolloutRequest], params: SamplingParams, on_progress: OnProgress, record: RecordOptions
    ) -> list[Rollout]:
        """Write a batch; where memory runs out, write nothing and make batches half as large from now on.

        Ranks that write together cannot: they would no longer be in the same forward.
        """
        told: list[RolloutProgress] = []

        def tell(progress: RolloutProgress) -> None:
            told.append(progress)
            on_progress(progress)

        try:
            return self._write(requests, params, tell, record)
        except torch.OutOfMemoryError:
            if len(requests) == 1 or self.together is not None:
                raise
        # Behind the except: the error's frames held what was begun.
        on_progress(RolloutProgress(-sum(each.num_finished for each in told), -sum(each.num_tokens for each in told)))
        self.batch_size = len(requests) // 2
        self.stats.num_out_of_memory += 1
        logger.info(f"rollout: out of memory with {len(requests)} completions at once, going on with {self.batch_size}")
        return []

    def _write(
        self, requests: list[RolloutRequest], params: SamplingParams, on_progress: OnProgress, record: RecordOptions
    ) -> list[Rollout]:
        model: Any = inner_model(self.model)
        device = model.get_input_embeddings().weight.device
        prompts = [request.prompt_token_ids for request in requests]
        prompts += [request.blend.prompt_token_ids for request in requests if request.blend is not None]
        longest = max(map(len, prompts))
        if len(prompts) > 1:  # models that padding before the prompt misleads are written with one by one
            longest = round_tokens(longest)
        input_ids_RT = torch.full((len(prompts), longest), self.pad_token_id, dtype=torch.int64)
        mask_RT = torch.zeros_like(input_ids_RT)
        for row, prompt in enumerate(prompts):
            input_ids_RT[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
            mask_RT[row, longest - len(prompt) :] = 1
        drawing = _KeyedDrawing(requests, params, longest, self.stop_token_ids, on_progress, record, self.vocabulary)
        # A blank config: the checkpoint's own would fill every unset field (top_k, repetition penalty, ...).
        own_config = model.generation_config
        model.generation_config = GenerationConfig()
        try:
            with _head_input(model, drawing.see_hidden):
                write = partial(
                    model.generate,
                    synced_gpus=self.together is not None,
                    input_ids=input_ids_RT.to(device),
                    attention_mask=mask_RT.to(device),
                    logits_processor=LogitsProcessorList([drawing]),
                    generation_config=GenerationConfig(
                        do_sample=False,
                        max_new_tokens=max(request.max_new_tokens for request in requests),
                        eos_token_id=list(self.stop_token_ids),
                        pad_token_id=self.pad_token_id,
                        use_cache=True,
                    ),
                )
                write() if self.together is None else self.together.inside(write)
        finally:
            model.generation_config = own_config
        rollouts = drawing.rollouts()
        self.stats.num_blended_tokens += sum(len(rollout.blends) for rollout in rollouts)
        self.stats.blend_sum += sum(sum(rollout.blends) for rollout in rollouts)
        return rollouts


def _by_length(requests: Sequence[RolloutRequest]) -> list[int]:
    """Order requests so that neighbours in length share a batch: less padding, fewer idle rows at the end."""
    return sorted(
        range(len(requests)),
        key=lambda row: (len(requests[row].prompt_token_ids), requests[row].max_new_tokens, row),
    )


@contextlib.contextmanager
def _head_input(model: PreTrainedModel, see: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Show what goes into the head, and make it contiguous.

    Otherwise the first product of a batch copies the head's weight once per row (seconds on a CPU).
    """

    def before(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        see(inputs[0])
        return (inputs[0].contiguous(), *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


class _BlendedRows:
    """The rows of bare prompts: which completion each belongs to, and what was recorded of it."""

    def __init__(self, requests: list[RolloutRequest]) -> None:
        self.num_requests = len(requests)
        blends = [(row, request.blend) for row, request in enumerate(requests) if request.blend is not None]
        self.blends = [blend for _, blend in blends]
        self.homes = [row for row, _ in blends]  # completions that are blended
        self.steps: list[tuple[torch.Tensor, torch.Tensor]] = []  # log-probabilities of tokens, and b, of a step each
        self.last: tuple[torch.Tensor, torch.Tensor] | None = None

    def mix(self, scores_RV: torch.Tensor) -> torch.Tensor:
        """Return the logits to draw each completion from, [B, V]."""
        scores_BV = scores_RV[: self.num_requests]
        if not self.blends:
            return scores_BV
        own_PV, bare_PV = scores_BV[self.homes], scores_RV[self.num_requests :]
        weights_P, budgets_P = (
            torch.tensor(values, dtype=scores_RV.dtype, device=scores_RV.device)
            for values in (
                [blend.weight for blend in self.blends],
                [torch.inf if blend.budget is None else blend.budget for blend in self.blends],
            )
        )
        if any(blend.budget is not None for blend in self.blends):
            weights_P = within_budget(own_PV, bare_PV, weights_P, budgets_P)
        self.last = bare_PV, weights_P
        mixed_BV = scores_BV.clone()
        mixed_BV[self.homes] = mix(own_PV, bare_PV, weights_P)
        return mixed_BV

    def give(self, token_ids_B: torch.Tensor) -> torch.Tensor:
        """Return the token of every row, [R], and record those of blended completions."""
        if self.last is None:
            return token_ids_B
        bare_PV, weights_P = self.last
        drawn_P = token_ids_B[self.homes]
        self.steps.append((logprobs_at(bare_PV, drawn_P), weights_P))
        return torch.cat([token_ids_B, drawn_P])

    def recorded(self) -> dict[int, tuple[list[float], list[float]]]:
        """Return what was recorded of each blended completion: log-probabilities under the bare prompt, and b."""
        if not self.steps:
            return {}
        bare_logprobs, blends = (torch.stack(column, dim=1).tolist() for column in zip(*self.steps, strict=True))
        return dict(zip(self.homes, zip(bare_logprobs, blends, strict=True), strict=True))


class _KeyedDrawing(LogitsProcessor):
    """Draws and records each token; what it returns makes ``generate``'s argmax that token."""

    def __init__(
        self,
        requests: list[RolloutRequest],
        params: SamplingParams,
        prompt_length: int,
        stop_token_ids: tuple[int, ...],
        on_progress: OnProgress,
        record: RecordOptions,
        vocabulary: Vocabulary | None,
    ) -> None:
        self.requests = requests
        self.vocabulary = vocabulary
        self.record = record
        self.hidden: list[torch.Tensor] = []  # a step each, [R, D]
        self.top: list[TopLogprobs] = []  # a step each, [B, K]
        each_params = [request.params or params for request in requests]
        self.groups = [  # transformers' warpers take one distribution a call
            (warpers(one), [row for row, other in enumerate(each_params) if other == one])
            for one in dict.fromkeys(each_params)
        ]
        self.greedy_B = torch.tensor([one.greedy for one in each_params])
        self.prompt_length = prompt_length
        self.stop_token_ids = frozenset(stop_token_ids)
        self.on_progress = on_progress
        self.words_B2 = key_words([request.key for request in requests])
        self.draws: list[Draw] = []
        self.blended = _BlendedRows(requests)
        self.live = [True] * len(requests)

    def see_hidden(self, hidden_BTD: torch.Tensor) -> None:
        """Keep the hidden state the next token is drawn from."""
        if self.record.hidden:
            self.hidden.append(hidden_BTD[:, -1].clone())

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = input_ids.shape[1] - self.prompt_length
        positions_B = torch.full((len(self.requests),), position, device=scores.device)
        forced = torch.full_like(scores, -torch.inf)
        scores_RV = scores.clamp(min=torch.finfo(scores.dtype).min)  # as the engine does
        own_BV, scores = scores_RV[: len(self.requests)], self.blended.mix(scores_RV)
        processed = self._process(input_ids, scores)
        words_B2, greedy_B = self.words_B2.to(scores.device), self.greedy_B.to(scores.device)
        if self.record.top_k:
            self.top.append(likeliest(own_BV, self.record.top_k))
        drawn = draw(scores, processed, greedy_B, words_B2, positions_B)
        if self.blended.blends:
            drawn = replace(drawn, logprobs=logprobs_at(own_BV, drawn.token_ids))
        self.draws.append(drawn)
        self._report(drawn.token_ids.tolist(), position)
        return forced.scatter_(1, self.blended.give(drawn.token_ids)[:, None], 0.0)

    def _process(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Put each row through its own distribution, with its own prefix and without the padding before it."""
        if self.vocabulary is not None:
            scores = self.vocabulary.restrict(scores)
        if not any(len(group) for group, _ in self.groups):
            return scores
        processed = scores.clone()
        for group, rows in self.groups:
            group_of: Any = group  # transformers types ids as LongTensor
            for row in rows:
                start = self.prompt_length - len(self.requests[row].prompt_token_ids)
                processed[row] = group_of(input_ids[row : row + 1, start:], scores[row : row + 1])[0]
        return processed

    def _report(self, token_ids: list[int], position: int) -> None:
        num_live = sum(self.live)
        for row, token in enumerate(token_ids):
            limit = self.requests[row].max_new_tokens
            self.live[row] = self.live[row] and token not in self.stop_token_ids and position + 1 < limit
        num_still = sum(self.live)
        self.on_progress(RolloutProgress(num_live - num_still, num_live, slots_in_use=num_still))

    def rollouts(self) -> list[Rollout]:
        token_ids, logprobs, sampling, entropies = (
            torch.stack([getattr(d, name) for d in self.draws], dim=1).tolist()
            for name in ("token_ids", "logprobs", "sampling_logprobs", "entropies")
        )
        found, recorded = [], self.blended.recorded()
        for row, request in enumerate(self.requests):
            kept, stopped = cut_at_terminator(token_ids[row], self.stop_token_ids, request.max_new_tokens)
            hidden, top = self.hidden[:kept], self.top[:kept]
            bare_logprobs, blends = recorded.get(row, ((), ()))
            found.append(
                Rollout(
                    key=request.key,
                    prompt_token_ids=request.prompt_token_ids,
                    token_ids=tuple(token_ids[row][:kept]),
                    logprobs=tuple(logprobs[row][:kept]),
                    sampling_logprobs=tuple(sampling[row][:kept]),
                    entropies=tuple(entropies[row][:kept]),
                    finish_reason="stop" if stopped else "length",
                    bare_logprobs=tuple(bare_logprobs[:kept]),
                    blends=tuple(blends[:kept]),
                    hidden=torch.stack([step[row] for step in hidden]) if hidden else None,
                    top=TopLogprobs(
                        torch.stack([step.token_ids[row] for step in top]),
                        torch.stack([step.logprobs[row] for step in top]),
                    )
                    if top
                    else None,
                )
            )
        return found
