"""Why a rollout should not be learned. Pure functions of one completion.

Source: the online form of the filter of Yang et al. (ACL 2024): banned phrases and the task's own check, plus
what that filter lets through (cut-off, looping and empty text, runaway lengths).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onpolicy_sdft.config.schema import TEXT_RULES

if TYPE_CHECKING:
    from onpolicy_sdft.screening.bare import BareAnswers

#: Reasons that one text shows, cheapest first.
REASONS = (*TEXT_RULES[:-1], "check_error", "check")

#: Sentences or lines that state an answer and nothing else.
_STEPS_OF_AN_ANSWER = 2

#: A rollout this much longer than the demonstration is fine whatever the ratio: ratios of short texts are noise.
_LENGTH_SLACK_TOKENS = 32


def is_looping(token_ids: Sequence[int], ngram: int, repeats: int, reference: Sequence[int] = ()) -> bool:
    """Whether a completion repeats itself more than its demonstration does.

    Args:
        token_ids: The completion.
        ngram: Tokens of what is counted.
        repeats: How many times as often one n-gram may stand in it as the demonstration's most frequent one.
        reference: The demonstration, which may be a table or a refrain itself.
    """
    return _most_frequent(token_ids, ngram) > repeats * max(1, _most_frequent(reference, ngram))


def _most_frequent(token_ids: Sequence[int], ngram: int) -> int:
    counts = Counter(tuple(token_ids[i : i + ngram]) for i in range(len(token_ids) - ngram + 1))
    return max(counts.values(), default=0)


def is_answer_only(num_tokens: int, num_steps: int, num_reference: int, bare: BareAnswers, share: float) -> bool:
    """Whether a completion leaves out the work that the policy's own bare answers do.

    It has less than a share of their tokens, and at most that share of their steps (two in any case: an answer may take
    two lines). A text at least half as long as its demonstration is never one: such data asks for answers alone.
    """
    is_short = num_tokens < share * bare.length and num_steps <= max(_STEPS_OF_AN_ANSWER, share * bare.num_steps)
    return is_short and 2 * num_tokens < num_reference


def is_verbatim(text: str, shown: str) -> bool:
    """Whether a completion is what the teacher was shown, word for word; space around it does not count."""
    return text.strip() == shown.strip()


def is_too_short(num_tokens: int, num_reference: int, shortest: float) -> bool:
    """Whether a completion is much shorter than the demonstration."""
    return num_tokens < shortest * num_reference


def is_too_long(num_tokens: int, num_reference: int, longest: float) -> bool:
    """Whether a completion is much longer than the demonstration."""
    return num_tokens > max(longest * num_reference, num_reference + _LENGTH_SLACK_TOKENS)
