"""The policy's own bare answers: what its texts look like when it is shown no demonstration.

They are the measure of a rollout. A text much shorter than they are leaves the work out; a text much more surprising
under the bare prompt could not have come from it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

#: Fewer right bare answers than this say little about how long a right answer is; then all of them are taken.
_MIN_RIGHT = 3

#: Share of bare answers that are less surprising than ``surprise_high``.
_HIGH = 0.9

_STEP = re.compile(r"[.!?;](?=\s|$)|\n")


def num_steps(text: str) -> int:
    """Return how many sentences or lines of a text hold a letter or a digit."""
    return sum(any(character.isalnum() for character in part) for part in _STEP.split(text))


@dataclass(frozen=True, slots=True)
class BareAnswer:
    """One answer to a bare prompt."""

    num_tokens: int
    text: str
    surprise: float  # mean -log p of its tokens, nats
    correct: bool


@dataclass(frozen=True, slots=True)
class BareAnswers:
    """What a sample of them has in common."""

    num: int
    num_right: int
    length: float  # median tokens: of the right ones where there are enough, else of all
    num_steps: float  # median, of the same
    of_right: bool  # whether lengths and steps are those of right answers
    length_score: float  # ``score`` of the sample that lengths and steps are from: this one, or an earlier one
    surprise: float  # mean over all answers, nats a token
    surprise_high: float  # nine of ten are less surprising

    @property
    def score(self) -> float:
        """Share of them that are right."""
        return self.num_right / self.num

    @staticmethod
    def of(answers: Sequence[BareAnswer]) -> BareAnswers:
        """Summarise answers; at least one."""
        right = [answer for answer in answers if answer.correct]
        measured = right if len(right) >= _MIN_RIGHT else answers
        surprises = [answer.surprise for answer in answers]
        return BareAnswers(
            num=len(answers),
            num_right=len(right),
            length=float(np.median([answer.num_tokens for answer in measured])),
            num_steps=float(np.median([num_steps(answer.text) for answer in measured])),
            of_right=measured is right,
            length_score=len(right) / len(answers),
            surprise=float(np.mean(surprises)),
            surprise_high=float(np.quantile(surprises, _HIGH)),
        )

    def after(self, earlier: BareAnswers | None) -> BareAnswers:
        """Return these with the lengths of earlier ones, where fewer are right now.

        A policy that has learned to leave the work out must not become the measure of it.
        """
        if earlier is None or self.score >= earlier.length_score:
            return self
        kept = ("length", "num_steps", "of_right", "length_score")
        return replace(self, **{name: getattr(earlier, name) for name in kept})

    def figures(self) -> dict[str, float]:
        """Return what a step logs of them."""
        return {
            "bare/score": self.score,
            "bare/of_right": float(self.of_right),
            "bare/length": self.length,
            "bare/surprise": self.surprise,
        }
