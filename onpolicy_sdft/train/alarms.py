"""Alarms: what collapses during training is said once, in one line, within a few steps. Pure: no clock, no files.

A value is beyond its limit only if it stays there for several steps in a row: one odd batch is no alarm. What falls or
rises is compared with the policy's first bare answers where the log holds them, else with the first steps of the run.
Steps that lie beyond a limit never become part of what they are compared with, so a collapse in the second step is
seen as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import AlarmConfig

#: Rollouts that the steps of an alarm must hold together: a rate over fewer is mostly noise.
_FEWEST_ROLLOUTS = 24


@dataclass(frozen=True, slots=True)
class Signal:
    """One metric that is watched."""

    option: str  # that holds its limit
    key: str  # of the metric
    falls: bool  # alarm below the limit; else above it
    limit: float | None  # None: not watched
    what: str  # happened, for people
    fix: str
    relative: bool = False  # the limit is a multiple of the reference
    adds: bool = False  # or what lies between it and the reference
    least_rise: float = -math.inf  # a multiple of next to nothing is nothing
    bare: str = ""  # key of the same quantity of the policy's own bare answers
    min_length: float = 0.0  # shortest rollouts, on average, that this is asked of
    is_rate: bool = False  # shown in per cent

    def show(self, value: float) -> str:
        """Word a value."""
        return f"{value:.0%}" if self.is_rate else f"{value:.3g}" if value < 100 else f"{value:.0f}"


@dataclass(frozen=True, slots=True)
class Alarm:
    """What was noticed."""

    step: int  # when it was said
    since: int  # first step beyond the limit
    key: str
    before: float | None  # what it was compared with; None for a limit of its own
    value: float
    text: str  # the line


def signals(config: AlarmConfig, length_ratio: float, truncated_rate: float) -> tuple[Signal, ...]:
    """Return what is watched.

    Args:
        config: The limits.
        length_ratio: ``train.warn_length_ratio``.
        truncated_rate: ``train.warn_truncated_rate``.
    """
    look = "look at rollouts.jsonl; then another context.template"
    return (
        Signal(
            "alarms.length_fall", "rollout/mean_length", True, config.length_fall, "rollouts became short",
            f"{look}, or a higher screening.min_length_ratio", relative=True, bare="bare/length",
        ),
        Signal(
            "alarms.loss_tokens_fall", "train/num_loss_tokens", True, config.loss_tokens_fall,
            "a step learns few tokens", f"{look}, or looser screening.* where targets are dropped", relative=True,
        ),
        Signal(
            "alarms.entropy_fall", "rollout/entropy", True, config.entropy_fall, "rollouts lost their variety",
            "a lower optim.lr or fewer steps", relative=True,
        ),
        Signal(
            "alarms.entropy_rise", "rollout/entropy", False, config.entropy_rise,
            "rollouts become random, as where a step goes too far for the few texts that it learns",
            "a lower optim.lr, a larger train.batch_size, or looser screening.* where most targets are dropped",
            relative=True, least_rise=0.2,
        ),
        Signal(
            "alarms.shared_start_rise", "rollout/shared_start", False, config.shared_start_rise,
            "rollouts begin alike whatever is asked", f"{look}, or fewer steps", relative=True, adds=True,
            min_length=config.min_tokens, is_rate=True,
        ),
        Signal(
            "alarms.min_keep_rate", "screen/keep_rate", True, config.min_keep_rate,
            "nearly no rollout is kept: what is learned are demonstrations, or nothing",
            f"loosen the rule that refuses most (screen/reason/*), or {look}", is_rate=True,
        ),
        Signal(
            "alarms.surprise_rise", "rollout/surprise", False, config.surprise_rise,
            "rollouts surprise the bare prompt", look, relative=True, bare="bare/surprise",
        ),
        Signal(
            "alarms.max_verbatim_rate", "rollout/verbatim_rate", False, config.max_verbatim_rate,
            "rollouts copy the demonstration, so this is plain fine-tuning on demonstrations", look,
            min_length=config.min_tokens, is_rate=True,
        ),
        Signal(
            "train.warn_length_ratio", "rollout/length_ratio", False, length_ratio,
            "rollouts are longer than the demonstrations, by this factor",
            "look at rollouts.jsonl; then a lower screening.max_length_ratio",
        ),
        Signal(
            "train.warn_truncated_rate", "rollout/truncated_rate", False, truncated_rate,
            "rollouts hit rollout.max_new_tokens",
            "raise it; or, where they go on after their answer, fewer steps or a lower optim.lr", is_rate=True,
        ),
    )  # fmt: skip


class Alarms:
    """Watches the metrics of every step.

    Args:
        watched: See :func:`signals`.
        patience: Steps in a row beyond a limit.
        reference_steps: First steps that make the reference where no bare answers are known.
        num_rollouts: Of a step: with few of them more steps must agree.
    """

    def __init__(self, watched: tuple[Signal, ...], patience: int, reference_steps: int, num_rollouts: int) -> None:
        self.watched = tuple(signal for signal in watched if signal.limit is not None)
        self.patience = max(patience, math.ceil(_FEWEST_ROLLOUTS / num_rollouts))
        self.reference_steps = reference_steps
        self.history: list[Alarm] = []
        # By option, since two may watch one metric:
        self._first: dict[str, list[float]] = {}  # the first steps
        self._bare: dict[str, float] = {}  # the first known value of bare answers
        self._beyond: dict[str, list[int]] = {}  # the steps in a row beyond the limit
        self._said: list[str] = []

    def watch(self, step: int, values: Mapping[str, float]) -> list[Alarm]:
        """Watch the metrics of a step, which may lack any; return the alarms that fire now."""
        found = [alarm for signal in self.watched if (alarm := self._watch(signal, step, values)) is not None]
        self.history += found
        return found

    def rearm(self) -> None:
        """Forget what is beyond its limit and what was said: other weights are trained from here."""
        self._beyond.clear()
        self._said.clear()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        kept = {"first": self._first, "bare": self._bare, "beyond": self._beyond, "said": self._said}
        return {**kept, "history": [asdict(alarm) for alarm in self.history]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state`."""
        self._first, self._bare, self._beyond = dict(state["first"]), dict(state["bare"]), dict(state["beyond"])
        self._said, self.history = list(state["said"]), [Alarm(**entry) for entry in state["history"]]

    def _watch(self, signal: Signal, step: int, values: Mapping[str, float]) -> Alarm | None:
        # Wrong answers say little of what right ones look like; later ones are of weights that may have collapsed.
        if signal.bare in values and values.get("bare/of_right"):
            self._bare.setdefault(signal.option, values[signal.bare])
        value = values.get(signal.key, math.nan)
        if math.isnan(value) or values.get("rollout/mean_length", math.inf) < signal.min_length:
            return None
        before = self._reference(signal)
        limit = _limit(signal, before)
        if limit is None or not (value < limit if signal.falls else value > limit):
            self._beyond[signal.option] = []
            self._learn(signal, value)
            return None
        steps = self._beyond[signal.option] = [*self._beyond.get(signal.option, []), step]
        if len(steps) < self.patience or signal.option in self._said:
            return None
        self._said.append(signal.option)
        return Alarm(step, steps[0], signal.key, before, value, self._line(signal, steps[0], before, value, limit))

    def _reference(self, signal: Signal) -> float | None:
        if not signal.relative:
            return None
        if signal.option in self._bare:
            return self._bare[signal.option]
        first = self._first.get(signal.option)
        return median(first) if first else None

    def _learn(self, signal: Signal, value: float) -> None:
        first = self._first.setdefault(signal.option, [])
        if signal.relative and len(first) < self.reference_steps:
            first.append(value)

    def _line(self, signal: Signal, since: int, before: float | None, value: float, limit: float) -> str:
        change = f"{signal.key} {signal.show(value)}"
        if before is not None:
            whose = "the bare answers'" if signal.option in self._bare else "that of the first steps"
            change = f"{signal.key} {signal.show(before)} ({whose}) -> {signal.show(value)}"
        beyond = "below" if signal.falls else "above"
        return (
            f"{signal.what}: {change}, {beyond} {signal.show(limit)} ({signal.option}={signal.limit:g}) since "
            f"step {since}. Fix: {signal.fix}."
        )


def _limit(signal: Signal, before: float | None) -> float | None:
    if not signal.relative:
        return signal.limit
    if before is None or signal.limit is None:
        return None
    return signal.limit + before if signal.adds else max(signal.limit * before, before + signal.least_rise)
