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
        self._mine: dict[str, float] = {}  # of this rank; averaged over the ranks
        self._memory: dict[str, int] = {}  # MiB on this rank; the largest of the ranks counts
        return self

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the seconds of a phase and the memory at its end; a phase may come several times."""
        began = self.clock()
        try:
            yield
        finally:
            self._seconds[name] += self.clock() - began
        if name in ("rollout", "learn"):
            key = f"memory/{name}_mib"
            self._memory[key] = max(self._memory.get(key, 0), memory_mib(self.backend.device))

    def note(self, *values: Mapping[str, float]) -> None:
        """Add values of this rank, to be averaged over the ranks."""
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
        seconds["learn"] -= seconds["score"]
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
            **mean_of_each(by_rank),
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


def mean_of_each(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each value over the ranks: a rate's over those that have one; else one without counts as 0.

    Of ``*_max``, which is the largest of a rank, the largest over the ranks.
    """
    found = {}
    for name in sorted({name for each in values for name in each}):
        known = [each[name] for each in values if name in each]
        mean = sum(known) / (len(known) if name.endswith("_rate") else len(values))
        found[name] = max(known) if name.endswith("_max") else mean
    return found
