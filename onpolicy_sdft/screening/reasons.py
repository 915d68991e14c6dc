"""Why a rollout should not be learned. Pure functions of one completion.

Source: the online form of the filter of Yang et al. (ACL 2024): banned phrases and the task's own check, plus
what that filter lets through (cut-off, looping and empty text, runaway lengths).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onpolicy_sdft.screening.bare import BareAnswers

#: Reasons that one text shows, cheapest first.
REASONS = ("empty", "truncated", "looping", "banned", "length", "answer_only", "check")

#: Reasons that take the policy's own view of a text, see ``review.py``.
REVIEW_REASONS = ("surprise", "leak", "support", "steps", "agreement", "solved")

#: Sentences or lines that state an answer and nothing else.
_STEPS_OF_AN_ANSWER = 2

#: A rollout this much longer than the demonstration is fine whatever the ratio: ratios of short texts are noise.
_LENGTH_SLACK_TOKENS = 32


def is_looping(token_ids: Sequence[int], ngram: int, repeats: int) -> bool:
    """Whether one n-gram of token ids stands more than ``repeats`` times in a completion."""
    counts = Counter(tuple(token_ids[i : i + ngram]) for i in range(len(token_ids) - ngram + 1))
    return bool(counts) and max(counts.values()) > repeats


def banned_phrase(text: str, phrases: Sequence[str]) -> str | None:
    """Return the first banned phrase in a text, in any case, or None."""
    lowered = text.lower()
    return next((phrase for phrase in phrases if phrase.lower() in lowered), None)


def is_answer_only(num_tokens: int, num_steps: int, num_reference: int, bare: BareAnswers, share: float) -> bool:
    """Whether a completion leaves out the work that the policy's own bare answers do.

    It has less than a share of their tokens, and at most that share of their steps (two in any case: an answer may take
    two lines). A text at least half as long as its demonstration is never one: such data asks for answers alone.
    """
    is_short = num_tokens < share * bare.length and num_steps <= max(_STEPS_OF_AN_ANSWER, share * bare.num_steps)
    return is_short and 2 * num_tokens < num_reference


def is_length_off(num_tokens: int, num_reference: int, shortest: float, longest: float) -> bool:
    """Whether a completion's length is out of proportion to the demonstration's."""
    too_short = num_tokens < shortest * num_reference
    too_long = num_tokens > max(longest * num_reference, num_reference + _LENGTH_SLACK_TOKENS)
    return too_short or too_long
