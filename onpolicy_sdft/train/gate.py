"""The gate: does the policy still answer what it answered at the start, on rows it is never trained on?

Pure: which steps are checked follows from counts of tokens, never from clocks, and what is decided from answers alone,
so a resumed run does the same. Rows are compared with themselves at the start, pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import GateConfig


@dataclass(frozen=True, slots=True)
class Drop:
    """What the same rows were worth before and after."""

    before: float  # share of right answers
    after: float
    num_lost: int  # rows that were better before
    num_gained: int
    n: int
    p_value: float  # of a sign test, one-sided: the chance of losing so many of the rows that changed by luck alone

    @property
    def size(self) -> float:
        """How much was lost; below 0 it was gained."""
        return self.before - self.after

    def text(self) -> str:
        """Word it."""
        changed = f"{self.num_lost} rows lost, {self.num_gained} gained of {self.n}, p = {self.p_value:.2g}"
        return f"{self.before:.3f} -> {self.after:.3f} ({changed})"


def compare(before: Sequence[float], after: Sequence[float]) -> Drop:
    """Compare answers to the same questions, in the same order, by an exact one-sided sign test.

    Source: McNemar (1947), exact form: rows that changed are a fair coin's throws if nothing was lost.
    """
    pairs = list(zip(before, after, strict=True))
    lost, gained = sum(b > a for b, a in pairs), sum(a > b for b, a in pairs)
    p_value = 1.0
    if lost + gained:
        from scipy.stats import binomtest  # half a second to import: not before a first step

        p_value = float(binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue)
    n = len(pairs)
    return Drop(sum(before) / n, sum(after) / n, lost, gained, n, p_value)


def list_drops(drops: Mapping[str, Drop]) -> str:
    """Word what became of several sets."""
    return ", ".join(f"{label} {drop.text()}" for label, drop in drops.items())


def worse_of(drops: Mapping[str, Drop], config: GateConfig) -> dict[str, Drop]:
    """Return the sets that dropped by more than is allowed, and by no accident however many sets are looked at."""
    max_p_value = config.max_p_value / max(1, len(drops))
    return {label: drop for label, drop in drops.items() if drop.size > config.max_drop and drop.p_value < max_p_value}


@dataclass(frozen=True, slots=True)
class Answers:
    """Which rows of the gate's sets were answered right, and how much was written for it."""

    correct: Mapping[str, Sequence[bool]]  # by set
    num_tokens: int


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One look of the gate."""

    step: int
    why: str  # start | planned | alarm | end
    correct: Mapping[str, Sequence[bool]]  # by set
    passed: bool = True
    action: str = ""  # what followed where it did not pass: stop | rollback | continue

    @property
    def scores(self) -> dict[str, float]:
        """Share of right answers by set."""
        return {label: sum(rows) / len(rows) for label, rows in self.correct.items()}

    @property
    def score(self) -> float:
        """Mean over the sets."""
        return sum(self.scores.values()) / len(self.correct)


class Gate:
    """Decides when to look, whether what is seen passes, and which state was the best.

    Args:
        config: ``gate`` of the run.
        step_tokens: Tokens that a step is expected to write and learn.
    """

    def __init__(self, config: GateConfig, step_tokens: float) -> None:
        self.config = config
        self.step_tokens = step_tokens
        self.history: list[GateCheck] = []
        self.every = 0  # steps between two planned checks; known once the start was answered
        self.next_step = 0  # of the next planned check
        self.best_step = 0  # of the state that a stop keeps
        self.num_rollbacks = 0
        self.stopped = False

    def due(self, step: int, *, alarmed: bool, ended: bool) -> str:
        """Return why to look after a step: alarm, planned or end; empty to go on.

        An alarm takes the place of the next planned check, one at a time, so that the cost stays bounded.
        """
        if self.history and self.history[-1].step == step:
            return ""
        if ended:
            return "end"
        if step >= self.next_step:
            return "planned"
        return "alarm" if alarmed and self.next_step - step <= self.every else ""

    def begin(self, answers: Answers) -> None:
        """Store the answers before the first step, which all later ones are compared with."""
        cost = answers.num_tokens / (self.config.max_cost * self.step_tokens)
        self.every = self.next_step = self.config.every_steps or max(1, math.ceil(cost))
        self.history.append(GateCheck(0, "start", answers.correct))

    def judge(self, step: int, why: str, answers: Answers) -> tuple[GateCheck, dict[str, Drop]]:
        """Compare answers with those at the start; say what follows, and remember the best state.

        What does not pass is in :func:`worse_of`, what follows in :meth:`_action`.

        Returns:
            The check, whose ``action`` is empty where it passes, and the drop of each set.
        """
        if why == "alarm" or step >= self.next_step:
            self.next_step += self.every
        start = self.history[0].correct
        drops = {label: compare(start[label], rows) for label, rows in answers.correct.items()}
        check = GateCheck(step, why, answers.correct, passed=not worse_of(drops, self.config))
        if not check.passed:
            check = replace(check, action=self._action(why))
            self.num_rollbacks += check.action == "rollback"
            self.stopped = check.action == "stop"
        elif check.score >= self.best.score:  # of equals the later one: it has learned more
            self.best_step = step
        self.history.append(check)
        return check, drops

    @property
    def best(self) -> GateCheck:
        """The best state that passed."""
        return next(check for check in reversed(self.history) if check.step == self.best_step)

    @property
    def pinned(self) -> set[int]:
        """Steps whose checkpoint must stay."""
        return set() if self.config.action == "continue" else {self.best_step}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        names = ("every", "next_step", "best_step", "num_rollbacks", "stopped")
        return {**{name: getattr(self, name) for name in names}, "history": [asdict(check) for check in self.history]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state`."""
        for name in ("every", "next_step", "best_step", "num_rollbacks", "stopped"):
            setattr(self, name, state[name])
        self.history = [GateCheck(**entry) for entry in state["history"]]

    def _action(self, why: str) -> str:
        goes_back = self.config.action == "rollback"
        if goes_back and (why == "end" or self.num_rollbacks >= self.config.max_rollbacks):
            return "stop"  # nothing left to go on with, or it did not help
        return self.config.action
