"""What the rules of a screen say of the demonstrations themselves: one that refuses them is to be noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks.protocol import CHECK_ERROR
from onpolicy_sdft.types import NoiseKey, PromptPair, Rollout

_MOST = 10_000  # demonstrations that are looked at
_MOST_SLOWLY = 200  # where a check takes long


@dataclass(frozen=True, slots=True)
class Refused:
    """How many demonstrations a screen would refuse as rollouts."""

    num_looked_at: int
    by_rule: Counter[str]
    first_id: str = ""  # the first one
    first_rule: str = ""  # that refuses it

    def line(self) -> str:
        """Say it in one line."""
        said = f"the rules of screening would refuse {self.by_rule.total()} of {self.num_looked_at} demonstrations"
        if not self.by_rule:
            return said
        rules = ", ".join(f"{rule} {number}" for rule, number in self.by_rule.most_common())
        option = "check" if self.first_rule == CHECK_ERROR else self.first_rule
        return (
            f"{said}: {rules}. The first: {self.first_id!r}, by {self.first_rule}. Fix: mend these rows, or the rule "
            f"that refuses what is to be learned: --screening.{option} keep."
        )


def refused_demonstrations(screen: Screen, pairs: Sequence[PromptPair], max_new_tokens: int) -> Refused:
    """Judge demonstrations as if they were rollouts, with what the rules compare rollouts with: themselves.

    Args:
        screen: Of the run, or one like it.
        pairs: All rows, of which as many as are worth the time are looked at, spread over them.
        max_new_tokens: Longest rollout; a longer demonstration is truncated.
    """
    pairs = [pair for pair in pairs if pair.demonstration.response]
    looked_at = pairs[:: max(1, -(-len(pairs) // (_MOST if screen.check.is_quick else _MOST_SLOWLY)))]

    def reason_of(one: PromptPair) -> str:
        said = one.response_ids[:max_new_tokens]
        zeros = (0.0,) * len(said)
        key = NoiseKey(0, 0, one.demonstration.example_id)
        is_whole = len(said) == len(one.response_ids)
        rollout = Rollout(key, one.student_ids, said, zeros, zeros, zeros, "stop" if is_whole else "length")
        text = one.demonstration.response
        return screen.reason(one, rollout, text, cache(lambda: screen.check(text, one.demonstration)))

    reasons = screen.check.map(reason_of, screen.num_workers, looked_at)
    found = [(one.demonstration.example_id, reason) for one, reason in zip(looked_at, reasons, strict=True) if reason]
    return Refused(len(looked_at), Counter(reason for _, reason in found), *(found[0] if found else ()))
