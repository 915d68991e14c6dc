"""The rollout engine: generation on the training weights, over key-value slots that are refilled as texts end.

One call writes all completions of an optimizer step. Prompts are packed into forwards with little padding; a decode
forward advances every live slot by its pending token and the drafts that are worth verifying. Attention, weights
and sampling have their own files; this one holds the loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from onpolicy_sdft.models.lora import embedding_weight, inner_model
from onpolicy_sdft.models.seam import UnsupportedModel
from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.rollout.attention import KernelName, slot_attention_on
from onpolicy_sdft.rollout.backend import (
    NO_LISTENER,
    NO_RECORD,
    Listener,
    OnProgress,
    RolloutStats,
    ignore_progress,
)
from onpolicy_sdft.rollout.call import Call
from onpolicy_sdft.rollout.grid import GridCall, Steps, has_hooks_anywhere, on_device
from onpolicy_sdft.rollout.joining import Asked
from onpolicy_sdft.rollout.kernels import best_kernels
from onpolicy_sdft.rollout.memory import Budget, kv_budget, show_bytes
from onpolicy_sdft.rollout.pool import Pool, PoolNeeds, make_pool
from onpolicy_sdft.rollout.speculation import WIDTHS, Acceptance, StepCosts
from onpolicy_sdft.rollout.support import examine
from onpolicy_sdft.types import RecordOptions, Rollout, RolloutRequest, SamplingParams

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.rollout.sampling import Vocabulary
    from onpolicy_sdft.rollout.slots import LayerShape
    from onpolicy_sdft.rollout.weights import WeightsView

logger = logging.getLogger(__name__)

_WORTH_MEASURING = 2048  # tokens a call must be able to write before step times are measured for its drafts


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine works; nothing here changes which tokens are written, up to rounding of the logits."""

    num_slots: int | None = None  # None: from memory and the number of requests
    kv_gib: float | None = None  # memory for keys and values; None: ``kv_fraction`` of what is free
    kv_fraction: float = 0.4
    learning_bytes: int = 0  # what learning takes on a GPU, and is not there yet when the first call is made
    prefill_tokens: int | None = None  # prompt tokens of one forward; None: what pays on the device
    max_draft_tokens: int = 8  # 0: no drafts
    deterministic: bool = False  # shapes from these options alone: nothing is measured
    attention: KernelName | None = None  # None: the fastest there is on the device
    grid: bool | None = None  # decode in steps of a fixed shape; None: on a GPU
    graphs: bool = True  # capture such steps where the device can
    sync_steps: int = 8  # such steps between two looks of the host


class RolloutEngine:
    """Writes completions with the live weights.

    Args:
        model: The live model, adapters in place.
        stop_token_ids: Token ids that end a completion.
        weights: What to decode from.
        options: How to work.
        vocabulary: The ids that have a token: no other is drawn. None: all have one.

    Raises:
        UnsupportedModel: If the model cannot be served; transformers' ``generate`` can (see ``hf.py``).
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        stop_token_ids: Sequence[int],
        weights: WeightsView,
        options: EngineOptions,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.model = model
        self.stop_token_ids = tuple(stop_token_ids)
        self.weights = weights
        self.options = options
        self.vocabulary = vocabulary
        self.stats = RolloutStats()
        self.acceptance = Acceptance()
        self.costs: StepCosts | None = None
        self.budget: Budget | None = None
        self.steps = Steps(options.graphs and model.device.type == "cuda")
        self._stops: tuple[tuple[int, ...], torch.Tensor] = ((), torch.empty(0))
        self._fallback: KernelName | None = None
        self._uses_grid = model.device.type == "cuda" if options.grid is None else options.grid
        with on_device(model.device):
            self.layer_shapes = self._examine()
        self._pool: Pool | None = None
        self._announced = False

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_progress: OnProgress = ignore_progress,
        record: RecordOptions = NO_RECORD,
        listener: Listener = NO_LISTENER,
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
        asked = Asked(requests, listener)
        try:
            with on_device(model.device), no_trace(self.model), self.weights.open(), slot_attention_on(model):
                self.stats.weights_seconds = time.perf_counter() - started
                while left := asked.left():
                    self._write(model, left, params, on_progress, record, asked)
        except BaseException:
            self.steps.drop()  # nobody knows what they would read now
            raise
        self.stats.num_prompt_tokens = sum(len(prompt) for request in asked.requests for prompt in request.prompts)
        self.stats.total_seconds = time.perf_counter() - started
        return asked.rollouts()

    def _write(
        self,
        model: PreTrainedModel,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_progress: OnProgress,
        record: RecordOptions,
        listener: Listener,
    ) -> None:
        """Write completions; where memory runs out, leave those that have not ended to half as many slots."""
        kind = GridCall if self._uses_grid else Call
        try:
            pool = self._make_pool(requests, record)
            self._measure_costs(pool, requests)
            kind(self, model, pool, requests, params, on_progress, record, listener).run()
        except torch.OutOfMemoryError:
            if self._pool is None or self._pool.num_slots == self._pool.least:
                raise
            num_slots, half = self._pool.num_slots, max(self._pool.least, self._pool.num_slots // 2)
            num_bytes = half * self._pool.cache.length * self._pool.bytes_per_position
            self.budget = Budget(num_bytes, "what was left of it")
            self.stats.num_out_of_memory += 1
            self._forget_pool()
            logger.info(f"rollout: out of memory with {num_slots} slots, going on with {half}")

    @property
    def stop_token_ids_T(self) -> torch.Tensor:
        """``stop_token_ids`` as a tensor, the same one for as long as they are the same: captured steps read it."""
        if self._stops[0] != self.stop_token_ids:
            self._stops = self.stop_token_ids, torch.tensor(self.stop_token_ids, device=self.model.device)
        return self._stops[1]

    def release(self) -> bool:
        """Give slots and copies of weights back; the next call makes half as many slots, for lack of room."""
        if self._pool is None:
            return False
        half = max(self._pool.least, self._pool.num_slots // 2)
        self.budget = Budget(half * self._pool.cache.length * self._pool.bytes_per_position, "half of what was given")
        logger.info(f"rollout: {self._pool.num_slots} slots are given back, going on with {half}")
        self._forget_pool()
        self.weights.release()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def state(self) -> dict[str, Any]:
        """Return what shapes were chosen by: step times, acceptance, memory."""
        return {
            "costs": None if self.costs is None else {"rows": self.costs.rows, "seconds": self.costs.seconds},
            "kept": self.acceptance.kept,
            "seen": self.acceptance.seen,
            "budget": None if self.budget is None else (self.budget.num_bytes, self.budget.origin),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`: nothing is measured again."""
        costs, budget = state["costs"], state["budget"]
        self.costs = None if costs is None else StepCosts(tuple(costs["rows"]), tuple(map(tuple, costs["seconds"])))
        self.acceptance = Acceptance(dict(state["kept"]), dict(state["seen"]))
        self.budget = None if budget is None else Budget(*budget)

    def _make_pool(self, requests: Sequence[RolloutRequest], record: RecordOptions) -> Pool:
        """Return slots that fit the call, the ones at hand where they do."""
        model = inner_model(self.model)
        weight = embedding_weight(model)  # in the dtype of the decode copy
        if self.budget is None:
            options = self.options
            self.budget = kv_budget(options.kv_gib, options.kv_fraction, weight.device, options.learning_bytes)
        needs = PoolNeeds.of(requests, self.options.max_draft_tokens, weight.dtype, weight.device)
        old, self._pool = self._pool, None
        grown = needs if old is None else needs.at_least(old)  # so that calls of unlike lengths do not take turns
        reuse = old is not None and old.fits(needs, self.options.num_slots, self.budget, may_be_more=self._uses_grid)
        pool = old if reuse else None
        del old
        if pool is None:
            self._forget_pool()  # freed before a larger one is made
            kernels = self._kernels(weight.dtype)
            pool, self.budget = make_pool(needs, grown, self.layer_shapes, self.options.num_slots, self.budget, kernels)
            if not self._announced:
                copied = show_bytes(self.weights.num_bytes)
                fused = self.weights.fused
                logger.info(
                    f"rollout engine: {pool.describe()}, attention: {kernels}, decode copy of the weights {copied}, "
                    f"fused: {fused}"
                )
                self._announced = True
        self._pool, self.stats.num_slots, pool.least = pool, pool.num_slots, needs.least
        pool.make_room_for(record, needs, weight.shape[1])
        if self._uses_grid:
            addresses = pool.addresses(), self.weights.fingerprint(), self.stop_token_ids_T.data_ptr()
            self.steps.keep_for(addresses, may_capture=not has_hooks_anywhere(model))
        return pool

    def _forget_pool(self) -> None:
        self.steps.drop()
        self._pool = None

    def _examine(self) -> tuple[LayerShape, ...]:
        """Find out whether the model can be served, with the plain sum where the device's own kernels fail it."""
        model = inner_model(self.model)
        kernels = self._kernels(embedding_weight(model).dtype)
        try:
            return examine(model, kernels)
        except UnsupportedModel as error:
            if kernels != "triton" or self.options.attention is not None:
                raise
            shapes = examine(model, "torch")
            self._fallback = "torch"
            logger.info(f"rollout engine: attention runs as the plain sum, which is slow: with triton {error}")
            return shapes

    def _kernels(self, dtype: torch.dtype) -> KernelName:
        """Return which implementation of attention serves numbers of a type."""
        best = self.options.attention or self._fallback or best_kernels(self.model.device, dtype)
        return "torch" if best == "cpu" and self._uses_grid else best  # that of a CPU needs ragged packings

    def _measure_costs(self, pool: Pool, requests: Sequence[RolloutRequest]) -> None:
        few = sum(request.max_new_tokens for request in requests) < _WORTH_MEASURING
        most = self.options.max_draft_tokens
        if self.costs is not None or self.options.deterministic or not most or few:
            return
        kind = GridCall if self._uses_grid else Call
        call = kind(self, inner_model(self.model), pool, (), SamplingParams(), ignore_progress, NO_RECORD)
        context = min(pool.cache.length - max(WIDTHS) - 1, 256)
        for buffer in (*pool.cache.keys, *pool.cache.values):
            buffer[:, :, : context + max(WIDTHS)].zero_()  # pages that were never touched would be read too fast

        def time_step(rows: int, width: int) -> float:
            return call.time_step(rows, width, context)

        if self._uses_grid:
            self.costs = StepCosts.measure_grid(pool.num_slots, most + 1, time_step)
        else:
            self.costs = StepCosts.measure(pool.num_slots, time_step)
