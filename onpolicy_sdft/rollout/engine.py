"""The rollout engine: generation on the training weights, over key-value slots that are refilled as texts end.

One call writes all completions of an optimizer step. Prompts are packed into forwards without padding; a decode
forward advances every live slot by its pending token and the drafts that are worth verifying. Attention, weights
and sampling have their own files; this one holds the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from onpolicy_sdft.models.lora import embedding_weight, inner_model
from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.rollout.attention import slot_attention_on
from onpolicy_sdft.rollout.backend import NO_RECORD, OnProgress, RolloutStats, ignore_progress
from onpolicy_sdft.rollout.call import Call
from onpolicy_sdft.rollout.memory import Budget, kv_budget, show_bytes
from onpolicy_sdft.rollout.pool import Pool, PoolNeeds, make_pool
from onpolicy_sdft.rollout.speculation import WIDTHS, Acceptance, StepCosts
from onpolicy_sdft.rollout.support import examine, runs_on_kernel
from onpolicy_sdft.types import Record, Rollout, RolloutRequest, SamplingLaw

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.rollout.weights import WeightsView

_WORTH_MEASURING = 2048  # tokens a call must be able to write before step times are measured for its drafts


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine works; nothing here changes which tokens are written, up to rounding of the logits."""

    num_slots: int | None = None  # None: from memory and the number of requests
    kv_gib: float | None = None  # memory for keys and values; None: ``kv_fraction`` of what is free
    kv_fraction: float = 0.4
    prefill_tokens: int = 1024  # prompt tokens of one forward
    max_draft_tokens: int = 8  # 0: no drafts
    deterministic: bool = False  # shapes from these options alone: nothing is measured
    use_kernel: bool | None = None  # CPU attention kernel; None: where it can run


class RolloutEngine:
    """Writes completions with the live weights.

    Args:
        model: The live model, adapters in place.
        terminators: Token ids that end a completion.
        weights: What to decode from.
        options: How to work.
        say: Told how large the first call's slots are, and when memory for as many cannot be had.

    Raises:
        UnsupportedModel: If the model cannot be served; transformers' ``generate`` can (see ``hf.py``).
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        terminators: Sequence[int],
        weights: WeightsView,
        options: EngineOptions,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model = model
        self.terminators = tuple(terminators)
        self.weights = weights
        self.options = options
        self.say = say
        self.stats = RolloutStats()
        self.acceptance = Acceptance()
        self.costs: StepCosts | None = None
        self.budget: Budget | None = None
        self.served = examine(inner_model(model))
        self._pool: Pool | None = None
        self._announced = False

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        law: SamplingLaw,
        on_progress: OnProgress = ignore_progress,
        record: Record = NO_RECORD,
    ) -> list[Rollout]:
        """Write one completion per request; see :class:`~onpolicy_sdft.rollout.backend.RolloutBackend`.

        Raises:
            ConfigError: If the memory for keys and values is too small for one request.
        """
        self.stats = RolloutStats()
        if not requests:
            return []
        started = time.perf_counter()
        model = inner_model(self.model)
        with no_trace(self.model), self.weights.open(), slot_attention_on(model):
            self.stats.weights_seconds = time.perf_counter() - started
            self._measure_costs(self._make_pool(requests, record), requests)
            found: list[Rollout | None] = [None] * len(requests)
            while waiting := [index for index, rollout in enumerate(found) if rollout is None]:
                left = [requests[index] for index in waiting]
                written = self._write(model, left, law, on_progress, record)
                for index, rollout in zip(waiting, written, strict=True):
                    found[index] = rollout
        self.stats.total_seconds = time.perf_counter() - started
        return [rollout for rollout in found if rollout is not None]

    def _write(
        self,
        model: PreTrainedModel,
        requests: Sequence[RolloutRequest],
        law: SamplingLaw,
        on_progress: OnProgress,
        record: Record,
    ) -> list[Rollout | None]:
        """Write completions; where memory runs out, return those that ended and go on with half the slots."""
        pool = self._make_pool(requests, record)
        call = Call(self, model, pool, requests, law, on_progress, record)
        try:
            call.run()
        except torch.OutOfMemoryError:
            if pool.num_slots == 1:
                raise
            half = pool.num_slots // 2
            self.budget = Budget(half * pool.cache.length * pool.bytes_per_position, "what was left of it")
            self.stats.num_out_of_memory += 1
            self._pool = None
            self.say(f"rollout: out of memory with {pool.num_slots} slots, going on with {half}")
        return call.found

    def state(self) -> dict[str, Any]:
        """Return what shapes were chosen by: step times, acceptance, memory."""
        return {
            "costs": None if self.costs is None else {"rows": self.costs.rows, "seconds": self.costs.seconds},
            "kept": self.acceptance.kept,
            "seen": self.acceptance.seen,
            "budget": None if self.budget is None else (self.budget.num_bytes, self.budget.origin),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state`: nothing is measured again."""
        costs, budget = state["costs"], state["budget"]
        self.costs = None if costs is None else StepCosts(tuple(costs["rows"]), tuple(map(tuple, costs["seconds"])))
        self.acceptance = Acceptance(dict(state["kept"]), dict(state["seen"]))
        self.budget = None if budget is None else Budget(*budget)

    def _make_pool(self, requests: Sequence[RolloutRequest], record: Record) -> Pool:
        """Return slots that fit the call, the ones at hand where they do."""
        model = inner_model(self.model)
        weight = embedding_weight(model)  # in the dtype of the decode copy
        if self.budget is None:
            self.budget = kv_budget(self.options.kv_gib, self.options.kv_fraction, weight.device)
        kernel = runs_on_kernel(model) if self.options.use_kernel is None else self.options.use_kernel
        needs = PoolNeeds.of(requests, self.options.max_draft_tokens, weight.dtype, weight.device)
        old, self._pool = self._pool, None  # freed before a larger one is made
        grown = needs if old is None else needs.at_least(old)  # so that calls of unlike lengths do not take turns
        pool = old if old is not None and old.fits(needs, self.options.num_slots, self.budget) else None
        del old
        if pool is None:
            pool, self.budget = make_pool(
                needs, grown, self.served.shapes, self.options.num_slots, self.budget, kernel, self.say
            )
            if not self._announced:
                copied = show_bytes(self.weights.num_bytes)
                fused = self.weights.fused
                self.say(f"rollout engine: {pool.describe()}, decode copy of the weights {copied}, fused: {fused}")
                self._announced = True
        pool.make_room_for(record, needs, weight.shape[1])
        self._pool, self.stats.num_slots = pool, pool.num_slots
        return pool

    def _measure_costs(self, pool: Pool, requests: Sequence[RolloutRequest]) -> None:
        few = sum(request.max_new_tokens for request in requests) < _WORTH_MEASURING
        if self.costs is not None or self.options.deterministic or not self.options.max_draft_tokens or few:
            return
        call = Call(self, inner_model(self.model), pool, (), SamplingLaw(), ignore_progress, NO_RECORD)
        context = min(pool.cache.length - max(WIDTHS) - 1, 256)
        for buffer in (*pool.cache.keys, *pool.cache.values):
            buffer[:, :, : context + max(WIDTHS)].zero_()  # pages that were never touched would be read too fast
        self.costs = StepCosts.measure(pool.num_slots, lambda rows, width: call.time_step(rows, width, context))
