"""Why a rollout should not be learned. Pure functions of one completion.

Source: the online form of the filter of Yang et al. (ACL 2024): banned phrases and the task's own check, plus
what that filter lets through (cut-off, looping and empty text, runaway lengths).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

REASONS = ("empty", "truncated", "looping", "banned", "length", "check")

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


def is_length_off(num_tokens: int, num_reference: int, shortest: float, longest: float) -> bool:
    """Whether a completion's length is out of proportion to the demonstration's."""
    too_short = num_tokens < shortest * num_reference
    too_long = num_tokens > max(longest * num_reference, num_reference + _LENGTH_SLACK_TOKENS)
    return too_short or too_long
