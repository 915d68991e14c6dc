"""How many drafted tokens to verify: measured step times against how often drafts of a kind are kept.

Times are measured once a run and never again; acceptance is counted from tokens alone. Both are in a checkpoint, so
a resumed run verifies the same drafts in forwards of the same shapes.

Shape letters: B rows, K drafts of a row, M measured row counts, J measured widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.interpolate import RegularGridInterpolator

WIDTHS = (1, 2, 3, 5, 9)  # tokens a row at which steps are timed
_PRIOR_RATE = 0.6  # of a matched draft token being kept, before anything was seen
_PRIOR_WEIGHT = 4.0  # draft tokens of a slot's own that count as much as what is known of its kind
_DECAY = 0.998  # of what a kind was seen to do, a draft: the policy moves
#: Kinds of what steps of a fixed shape count: drafts of whatever source, and rows that had one.
_OF_ROWS, _AVAILABLE = -1, -2
_WORTH = 1.05  # least gain in tokens a second for which drafts are verified at all


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds of a decode forward by its rows and its tokens a row."""

    rows: tuple[int, ...]  # ascending
    seconds: tuple[tuple[float, ...], ...]  # [M][J], a column a width of WIDTHS

    @staticmethod
    def measure(num_slots: int, time_step: Callable[[int, int], float]) -> StepCosts:
        """Time steps of several shapes: ``time_step(rows, width)`` runs one and returns its seconds."""
        rows = sorted({*(n for n in (1, 4, 16, 32, 64) if n < num_slots), num_slots})
        table = []
        for count in rows:
            line: list[float] = []
            for width in WIDTHS:
                if count * width > 256 and len(line) >= 2:  # beyond, tokens cost what the last ones did
                    slope = (line[-1] - line[-2]) / (WIDTHS[len(line) - 1] - WIDTHS[len(line) - 2])
                    line.append(line[-1] + slope * (width - WIDTHS[len(line) - 1]))
                    continue
                time_step(count, width)
                line.append(min(time_step(count, width) for _ in range(3)))
            table.append(tuple(np.maximum.accumulate(line).tolist()))
        return StepCosts(tuple(rows), tuple(table))

    @staticmethod
    def measure_grid(num_slots: int, width: int, time_step: Callable[[int, int], float]) -> StepCosts:
        """Time steps of one token a row and of ``width`` alone, each a graph to capture; others are on the line."""
        rows = sorted({*(n for n in (1, 64) if n < num_slots), num_slots})
        table = []
        for count in rows:
            for each in (1, width):
                time_step(count, each)
            one, wide = (min(time_step(count, each) for _ in range(5)) for each in (1, width))
            slope = max(0.0, wide - one) / (width - 1)
            table.append(tuple(one + slope * (each - 1) for each in WIDTHS))
        return StepCosts(tuple(rows), tuple(table))

    def of(self, num_rows: int, num_tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the seconds of steps of ``num_rows`` rows and several token counts."""
        if len(self.rows) == 1:
            return np.interp(num_tokens / num_rows, WIDTHS, self.seconds[0])
        table = RegularGridInterpolator(
            (self.rows, WIDTHS), np.array(self.seconds), bounds_error=False, fill_value=None
        )
        points = np.stack([np.full(len(num_tokens), float(num_rows)), num_tokens / num_rows], axis=-1)
        return np.asarray(table(points))


@dataclass
class Acceptance:
    """How often a draft token was kept, by where it came from (0: the first text of the row, and so on)."""

    kept: dict[int, float] = field(default_factory=dict)
    seen: dict[int, float] = field(default_factory=dict)

    def rate(self, kind: int, slot_kept: int = 0, slot_seen: int = 0) -> float:
        """Return the estimate for a slot that kept ``slot_kept`` of ``slot_seen`` verified draft tokens so far."""
        known = (self.kept.get(kind, 0.0) + _PRIOR_WEIGHT * _PRIOR_RATE) / (self.seen.get(kind, 0.0) + _PRIOR_WEIGHT)
        return (slot_kept + _PRIOR_WEIGHT * known) / (slot_seen + _PRIOR_WEIGHT)

    def saw(self, kind: int, num_kept: int, num_seen: int) -> None:
        """Count one verified draft: tokens kept, and tokens looked at until the first that was not."""
        self.kept[kind] = self.kept.get(kind, 0.0) * _DECAY + num_kept
        self.seen[kind] = self.seen.get(kind, 0.0) * _DECAY + num_seen

    def saw_rows(self, num_rows: int, num_with_drafts: int, num_seen: int, num_kept: int) -> None:
        """Count rows of steps of a fixed shape: those that had a draft, and draft tokens looked at and kept."""
        self.saw(_AVAILABLE, num_with_drafts, num_rows)
        self.saw(_OF_ROWS, num_kept, num_seen)


def choose_width(
    acceptance: Acceptance, costs: StepCosts, num_rows: int, most: int, *, hopeful: bool, num_prompts: int = 1
) -> int:
    """Choose how many drafted tokens every row of a step verifies: as many as pay, of few counts.

    Args:
        acceptance: What was seen of drafts so far.
        costs: Step times.
        num_rows: Of the step.
        most: Longest draft.
        hopeful: Presume that every draft is kept, so that what was given up once is looked at again.
        num_prompts: Slots that each row is run in: two where texts are blended.
    """
    rate = 1.0 if hopeful else acceptance.rate(_OF_ROWS)
    available = 1.0 if hopeful else acceptance.rate(_AVAILABLE)
    choices = np.array(sorted({0, most // 2, most}))
    expected = 1 + available * np.array([sum(rate**i for i in range(1, count + 1)) for count in choices])
    speed = expected / costs.of(num_rows * num_prompts, num_rows * num_prompts * (1 + choices))
    best = int(speed.argmax())
    return int(choices[best]) if speed[best] >= _WORTH * speed[0] else 0


def choose_drafts(
    rates_B: Sequence[float], available_B: Sequence[int], costs: StepCosts | None, num_prompts: int = 1
) -> list[int]:
    """Choose how many of its available draft tokens each row verifies in the next forward.

    Token i of a row's draft is kept with probability rate ** i, so tokens are taken in the order of that
    probability for as long as the expected tokens a second rise.

    Args:
        rates_B: Estimated acceptance of each row's draft.
        available_B: Draft tokens there are.
        costs: Step times; None verifies all there are.
        num_prompts: Slots that each row is run in: two where texts are blended.

    Returns:
        Tokens to verify, a row each; all 0 where drafting does not pay.
    """
    if costs is None or not any(available_B):
        return list(available_B)
    num_rows = len(available_B)
    longest = max(available_B)
    offsets_K = np.arange(1, longest + 1)
    gain_BK = np.clip(np.asarray(rates_B, dtype=float), 0.0, 1.0)[:, None] ** offsets_K
    gain_BK = np.where(offsets_K <= np.asarray(available_B)[:, None], gain_BK, -1.0)
    order = np.argsort(-gain_BK, axis=None, kind="stable")
    order = order[: int(sum(available_B))]
    expected = num_rows + np.concatenate([[0.0], np.cumsum(gain_BK.ravel()[order])])
    num_tokens = num_rows + np.arange(len(expected))
    speed = expected / costs.of(num_rows * num_prompts, num_tokens * num_prompts)
    best = int(speed.argmax())
    if speed[best] < _WORTH * speed[0]:
        return [0] * num_rows
    return [int(count) for count in np.bincount(order[:best] // longest, minlength=num_rows)]
