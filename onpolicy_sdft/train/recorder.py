"""The clocks, the memory and the metrics of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from onpolicy_sdft.train.memory import memory_mib
from onpolicy_sdft.train.telemetry import (
    length_metrics,
    loss_metrics,
    review_metrics,
    rollout_metrics,
    screen_metrics,
)
from onpolicy_sdft.types import StepMetrics, Target

if TYPE_CHECKING:
    from onpolicy_sdft.train.backend import Backend
    from onpolicy_sdft.train.state import TrainState, Update

_PHASES = ("rollout", "screen", "rollout_wait", "learn", "score")
#: Counts of a rank's own work, of which the log has the sum of all ranks.
_SUMMED = ("rollout/num_tokens", "rollout/num_out_of_memory")


class Recorder:
    """Measures the phases of a step and puts its metrics together.

    Args:
        backend: Whose ranks the metrics are of.
        objective: Name of the objective, as its part of the loss is called.
        num_skipped: First tokens of a target that are not learned.
        clock: Seconds.
    """

    def __init__(
        self, backend: Backend, objective: str, num_skipped: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.backend, self.objective, self.num_skipped, self.clock = backend, objective, num_skipped, clock
        self.begin()

    def begin(self) -> Self:
        """Start the clock of a step."""
        self._began = self.clock()
        self._seconds: dict[str, float] = dict.fromkeys(_PHASES, 0.0)
        self._inner = 0.0  # seconds of the phases that ended inside the current one
        self._mine: dict[str, float] = {}  # of this rank; see over_ranks
        self._memory: dict[str, int] = {}  # MiB on this rank; the largest of the ranks counts
        return self

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the seconds of a phase and the memory at its end.

        A phase may come several times, and inside another: then its seconds are not the other's.
        """
        began, outer, self._inner = self.clock(), self._inner, 0.0
        try:
            yield
        finally:
            seconds = self.clock() - began
            self._seconds[name] += seconds - self._inner
            self._inner = outer + seconds
        if name in ("rollout", "learn"):
            key = f"memory/{name}_mib"
            self._memory[key] = max(self._memory.get(key, 0), memory_mib(self.backend.device))

    def note(self, *values: Mapping[str, float]) -> None:
        """Add values of this rank; how those of all ranks become one, :func:`over_ranks` says."""
        for each in values:
            self._mine |= each

    def finish(self, targets: Sequence[Target], update: Update, state: TrainState) -> StepMetrics:
        """Return the metrics of a step: one gather for all that ranks have of their own.

        Args:
            targets: Those of all ranks.
            update: How they were learned.
            state: Counts this step already.
        """
        seconds = self._seconds | {"step": self.clock() - self._began}
        mine = {f"time/{name}_seconds": value for name, value in seconds.items()} | self._mine
        by_rank, memory = zip(*self.backend.gather((mine, self._memory)), strict=True)
        losses = {}
        if not update.skipped:  # a step that learned nothing has no loss
            losses = loss_metrics(self.objective, update.loss_sum, update.parts, update.num_counted_tokens)
        values = {
            **losses,
            **({"train/grad_norm": update.grad_norm} if update.num_counted_tokens else {}),
            "train/lr": update.lr,
            "train/num_loss_tokens": update.num_loss_tokens,
            "train/total_loss_tokens": state.total_loss_tokens,
            "train/num_micro_batches": update.num_micro_batches,
            **({"train/padding_rate": update.padding_rate} if update.num_micro_batches else {}),
            "train/num_halvings": state.num_halvings,
            "train/num_releases": state.num_releases,
            **over_ranks(by_rank),
            **{name: max(own[name] for own in memory) for name in self._memory},
            **rollout_metrics(targets),
            **screen_metrics(targets),
            **review_metrics(targets),
            **length_metrics(targets, self.num_skipped),
        }
        return StepMetrics(state.step, update.skipped, values | _rates(values, by_rank), tuple(targets))


def _rates(values: Mapping[str, float], by_rank: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return tokens a second of all ranks: learned over the step's time, sampled over the slowest rank's sampling."""
    rates = {"train/tokens_per_second": values["train/num_loss_tokens"] / max(1e-9, values["time/step_seconds"])}
    if seconds := max(own.get("time/sampling_seconds", 0.0) for own in by_rank):
        rates["rollout/tokens_per_second"] = sum(own.get("rollout/num_tokens", 0) for own in by_rank) / seconds
    return rates


def over_ranks(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return one value for each that ranks have of their own.

    Of seconds it is the mean over all ranks, of ``*_max`` the largest, of counts of work the sum; of anything else the
    mean over the ranks that have one: without drafts, or blended tokens, there is nothing to average.
    """
    found = {}
    for name in sorted({name for each in values for name in each}):
        known = [each[name] for each in values if name in each]
        if name.endswith("_max"):
            found[name] = max(known)
        elif name in _SUMMED:
            found[name] = sum(known)
        else:
            found[name] = sum(known) / (len(values) if name.startswith("time/") else len(known))
    return found
