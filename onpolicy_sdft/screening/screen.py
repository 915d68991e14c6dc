"""The screen: rollouts in, targets out, every one of them accounted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from onpolicy_sdft.screening.reasons import REASONS, banned_phrase, is_length_off, is_looping
from onpolicy_sdft.types import Rollout, Target, Verdict, Views

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import ScreeningConfig
    from onpolicy_sdft.tasks.protocol import Task

#: Draws again for these views: ``resample(views, attempt)``.
Resample = Callable[[Sequence[Views], int], Sequence[Rollout | None]]


class Screen:
    """Decides what is learned in place of each rollout.

    Args:
        config: Verdict per reason, thresholds.
        task: Its check is one of the reasons.
        decode: Token ids to text, special tokens left out.
        num_workers: Checks run at once (a code check waits for a subprocess).
    """

    def __init__(
        self,
        config: ScreeningConfig,
        task: Task,
        decode: Callable[[Sequence[int]], str],
        num_workers: int = 2,
    ) -> None:
        self.config = config
        self.task = task
        self.decode = decode
        self.num_workers = num_workers
        self.verdicts: dict[str, Verdict] = {reason: getattr(config, reason) for reason in REASONS}

    def __call__(self, views: Sequence[Views], rollouts: Sequence[Rollout | None], resample: Resample) -> list[Target]:
        """Return one target per example, in order.

        A ``None`` rollout means the demonstration itself was asked for. Examples whose verdict is ``resample`` are
        drawn again until ``max_attempts`` draws were made; then the demonstration is learned.
        """
        targets = self._judge(views, rollouts, attempt=0)
        for attempt in range(1, self.config.max_attempts):
            again = [index for index, target in enumerate(targets) if target.verdict == "resample"]
            if not again:
                break
            retried = [views[index] for index in again]
            judged = self._judge(retried, resample(retried, attempt), attempt)
            for index, target in zip(again, judged, strict=True):
                targets[index] = target
        return [self._settle(target) if target.verdict == "resample" else target for target in targets]

    def reason(self, views: Views, rollout: Rollout, text: str) -> str:
        """Return the first reason against a rollout, cheapest first; empty when there is none.

        A reason whose verdict is ``keep`` is none, so that it cannot hide a graver one.
        """
        config, num_tokens, num_reference = self.config, len(rollout.token_ids), len(views.response_ids)
        holds: dict[str, Callable[[], bool]] = {
            "empty": lambda: not text.strip(),
            "truncated": lambda: rollout.finish_reason == "length",
            "looping": lambda: is_looping(rollout.token_ids, config.loop_ngram, config.loop_repeats),
            "banned": lambda: banned_phrase(text, config.banned_phrases) is not None,
            "length": lambda: is_length_off(
                num_tokens, num_reference, config.min_length_ratio, config.max_length_ratio
            ),
            "check": lambda: not self.task.check(text, views.demonstration).correct,
        }
        return next((name for name in REASONS if self.verdicts[name] != "keep" and holds[name]()), "")

    def _judge(self, views: Sequence[Views], rollouts: Sequence[Rollout | None], attempt: int) -> list[Target]:
        pairs = list(zip(views, rollouts, strict=True))
        with ThreadPoolExecutor(self.num_workers) as pool:
            return list(pool.map(lambda pair: self._target(pair[0], pair[1], attempt), pairs))

    def _target(self, views: Views, rollout: Rollout | None, attempt: int) -> Target:
        if rollout is None:
            return _demonstration_target(views, "keep", "", None, attempt)
        text = self.decode(rollout.token_ids)
        reason = self.reason(views, rollout, text)
        verdict = self.verdicts[reason] if reason else "keep"
        if verdict == "fallback":
            return _demonstration_target(views, "fallback", reason, rollout, attempt)
        token_ids = () if verdict == "drop" else rollout.token_ids
        return Target(views, token_ids, text, verdict, reason, rollout, attempt)

    def _settle(self, target: Target) -> Target:
        return _demonstration_target(target.views, "fallback", target.reason, target.rollout, target.attempt)


def _demonstration_target(views: Views, verdict: Verdict, reason: str, rollout: Rollout | None, attempt: int) -> Target:
    response = views.demonstration.response
    return Target(views, views.response_ids, response, verdict, reason, rollout, attempt)
