"""The screen: rollouts in, targets out, every one of them accounted for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from onpolicy_sdft.machine import num_cores
from onpolicy_sdft.screening.bare import BareAnswers, num_steps
from onpolicy_sdft.screening.mentions import Mentions
from onpolicy_sdft.screening.reasons import (
    REASONS,
    is_answer_only,
    is_looping,
    is_too_long,
    is_too_short,
    is_verbatim,
)
from onpolicy_sdft.screening.watch import Resample, Watch
from onpolicy_sdft.tasks.protocol import CHECK_ERROR, Checker, has_check
from onpolicy_sdft.tool_calls import TOOLS
from onpolicy_sdft.types import CheckResult, PromptPair, Rollout, Target, Verdict

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import ScreeningConfig
    from onpolicy_sdft.tasks.protocol import Task

#: Reasons that do not hold against what the task's check accepts.
_OVERRULED = ("looping", "length")


def num_free_cores(num_local_ranks: int = 1) -> int:
    """Return how many cores are left to a rank of this machine beside the one that writes; at least 1."""
    return max(1, num_cores() // num_local_ranks - 1)


class Screen:
    """Decides what is learned in place of each rollout.

    Args:
        config: Verdict per reason, thresholds.
        task: Its check is one of the reasons.
        decode: Token ids to text, special tokens left out.
        num_workers: Checks run at once; None: as many as there are cores, less one.
        mentions: Finds talk about the demonstration; None: by the phrases of the config and those of any template.
        controls: Names of the control tokens inside a completion, its end left out.
        end_ids: What the chat template writes behind an answer: a kept text that stopped at another token is learned
            with this end. Empty: with its own.
        call_marks: Control tokens with which a completion may mark and end calls, where there are tools; their names.
    """

    def __init__(
        self,
        config: ScreeningConfig,
        task: Task,
        decode: Callable[[Sequence[int]], str],
        num_workers: int | None = None,
        mentions: Mentions | None = None,
        controls: Callable[[Sequence[int]], Sequence[str]] = lambda token_ids: (),
        end_ids: Sequence[int] = (),
        call_marks: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self.config = config
        self.task = task
        self.check = Checker(task, config.max_check_errors)
        self.mentions = Mentions(config.banned_phrases) if mentions is None else mentions
        self.controls = controls
        self.end_ids = tuple(end_ids)
        self.call_marks = call_marks
        self.decode = decode
        self.num_workers = num_free_cores() if num_workers is None else num_workers
        # A text whose check failed is treated as one that fails its check.
        self.verdicts: dict[str, Verdict] = {
            reason: getattr(config, "check" if reason == CHECK_ERROR else reason) for reason in REASONS
        }
        self.bare: BareAnswers | None = None  # what rollouts are compared with, once it was sampled

    def __call__(
        self, pairs: Sequence[PromptPair], rollouts: Sequence[Rollout | None], resample: Resample
    ) -> list[Target]:
        """Return one target per example, in order.

        A ``None`` rollout means the demonstration itself was asked for. Examples whose verdict is ``resample`` are
        drawn again until ``max_attempts`` draws were made; then the demonstration is learned.
        """
        with self.watch(pairs) as watch:
            return watch.targets(rollouts, resample)

    def watch(self, pairs: Sequence[PromptPair]) -> Watch:
        """Return what judges the draws of these examples while others are still written."""
        # Threads of pure Python would only take turns with the one that writes.
        asks = any(self.verdicts[reason] != "keep" for reason in ("check", *_OVERRULED))
        waits = asks and not self.check.is_quick
        may_resample = "resample" in self.verdicts.values()
        max_attempts = self.config.max_attempts if may_resample else 1
        return Watch(self.judge, pairs, max_attempts, self.num_workers if waits else 0)

    def figures(self) -> dict[str, float]:
        """Return what a step logs of the bare answers that rollouts are compared with."""
        return self.bare.figures() if self.bare else {}

    def reason(self, pair: PromptPair, rollout: Rollout, text: str, result: Callable[[], CheckResult]) -> str:
        """Return the first reason against a rollout, cheapest first; empty when there is none.

        A reason whose verdict is ``keep`` is none, so that it cannot hide a graver one. A right answer may be as short
        and as repetitive as it likes.

        Args:
            pair: Whose rollout it is.
            rollout: The rollout.
            text: Its text.
            result: Asks the task's check.
        """
        config, num_tokens, num_reference = self.config, len(rollout.token_ids), len(pair.response_ids)
        holds: dict[str, Callable[[], bool]] = {
            "empty": lambda: not text.strip(),
            "truncated": lambda: rollout.finish_reason == "length",
            "control": lambda: bool(self.controls_beyond(pair, rollout.token_ids)),
            "looping": lambda: (
                is_looping(rollout.token_ids, config.loop_ngram, config.loop_repeats, pair.response_ids)
                and not self._is_right(pair, result)
            ),
            "banned": lambda: self.mentions.find(text, pair.demonstration) is not None,
            "length": lambda: (
                bool(pair.demonstration.response)
                and (
                    is_too_long(num_tokens, num_reference, config.max_length_ratio)
                    or (
                        is_too_short(num_tokens, num_reference, config.min_length_ratio)
                        and not self._is_right(pair, result)
                    )
                )
            ),
            "answer_only": lambda: self.is_answer_only(pair, rollout, text),
            CHECK_ERROR: lambda: result().reason == CHECK_ERROR,
            "check": lambda: not result().correct,
        }
        return next((name for name in REASONS if self.verdicts[name] != "keep" and holds[name]()), "")

    def controls_beyond(self, pair: PromptPair, token_ids: Sequence[int]) -> set[str]:
        """Return the control tokens inside an answer that neither the response has nor calls, where there are tools."""
        return {*self.controls(token_ids)} - {*self.controls(pair.response_ids), *self._call_marks(pair).values()}

    def _call_marks(self, pair: PromptPair) -> Mapping[int, str]:
        return self.call_marks if any(turn.role == TOOLS for turn in pair.demonstration.turns) else {}

    def _is_right(self, pair: PromptPair, result: Callable[[], CheckResult]) -> bool:
        """Whether a check that tells right from wrong accepts a text."""
        return has_check(self.task, pair.demonstration) and result().correct

    def is_answer_only(self, pair: PromptPair, rollout: Rollout, text: str) -> bool:
        """Whether a rollout leaves out the work of the policy's bare answers; False where these are not known."""
        if self.bare is None:
            return False
        num_tokens, share = len(rollout.token_ids), self.config.answer_only_ratio
        num_reference = len(pair.response_ids) if pair.demonstration.response else round(2 * self.bare.length)
        return is_answer_only(num_tokens, num_steps(text), num_reference, self.bare, share)

    def _ended(self, pair: PromptPair, rollout: Rollout) -> tuple[int, ...]:
        """Return the tokens of a rollout as they are learned: with the template's own end, whatever it stopped at.

        Some templates end calls otherwise than other answers: such an end is kept where there are tools.
        """
        ends = {*self.end_ids[-1:], *pair.response_ids[-1:], *self._call_marks(pair)}
        if rollout.finish_reason != "stop" or rollout.token_ids[-1] in ends or not self.end_ids:
            return rollout.token_ids
        said, before = rollout.token_ids[:-1], self.end_ids[:-1]
        has_it = said[len(said) - len(before) :] == before
        return (*said, *(self.end_ids[-1:] if has_it else self.end_ids))

    def judge(self, pair: PromptPair, rollout: Rollout | None, attempt: int) -> Target:
        """Return what is learned of one draw, as far as its own text tells."""
        if rollout is None:
            return Target(pair, pair.response_ids, pair.demonstration.response, "keep", "", None, attempt)
        text = self.decode(rollout.token_ids)
        copied = is_verbatim(text, pair.demonstration.shown)
        target = Target(pair, self._ended(pair, rollout), text, "keep", "", rollout, attempt, is_verbatim=copied)
        if pair.feedback is not None and pair.feedback.drop:
            return refused(replace(target, correct=not pair.feedback.message), "drop", pair.feedback.drop)
        known = pair.feedback.result if pair.feedback is not None and pair.feedback.rollout is rollout else None
        result = cache(lambda: known or self.check(text, pair.demonstration))
        reason = self.reason(pair, rollout, text, result)
        # The check is worth asking also of a whole text that is refused.
        if self.verdicts["check"] != "keep" and reason not in ("empty", "truncated", "control", "looping"):
            target = replace(target, correct=result().correct)
        if not reason:
            return target
        verdict = self.verdicts[reason]
        is_last = attempt + 1 >= self.config.max_attempts
        return refused(target, "fallback" if verdict == "resample" and is_last else verdict, reason)


def refused(target: Target, verdict: Verdict, reason: str) -> Target:
    """Return a target whose rollout is not learned, for a reason: its demonstration is, or nothing."""
    pair, response = target.pair, target.pair.demonstration.response
    if verdict == "fallback" and not response:
        verdict = "drop"
    if verdict == "fallback":
        return replace(target, token_ids=pair.response_ids, text=response, verdict=verdict, reason=reason)
    token_ids = () if verdict == "drop" else target.token_ids
    return replace(target, token_ids=token_ids, verdict=verdict, reason=reason)
