"""A probe of a few rows outside the steps: the policy's bare answers, and what its teacher would write now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onpolicy_sdft.screening.reasons import is_verbatim
from onpolicy_sdft.train.telemetry import without_records
from onpolicy_sdft.types import ONE_RANK, NoiseKey, PromptPair, Ranks, Rollout, RolloutRequest, Target

if TYPE_CHECKING:
    from onpolicy_sdft.screening.review import BarePromptReview
    from onpolicy_sdft.screening.screen import Screen
    from onpolicy_sdft.train.source import PolicySource


@dataclass(frozen=True, slots=True)
class Probe:
    """Asks about the same rows each time; ranks share them, and all get what was sampled.

    Args:
        pairs: The rows.
        source: Writes.
        screen: Judges the texts.
        reviewer: Measures them.
        policy: Puts the policy's own weights in place.
        ranks: The processes that share the rows.
    """

    pairs: Sequence[PromptPair]
    source: PolicySource
    screen: Screen
    reviewer: BarePromptReview
    policy: Callable[[], AbstractContextManager[None]] = nullcontext
    ranks: Ranks = ONE_RANK

    def bare(self, step: int) -> list[Target]:
        """Let the policy answer from the bare prompts; the targets hold them and whether they are right."""
        sampling = self.source.sampling
        requests = [
            RolloutRequest(
                pair.student_ids,
                NoiseKey(sampling.seed, step, pair.demonstration.example_id, 0, NoiseKey.PROBE_BARE),
                sampling.max_new_tokens,
            )
            for pair in self._share()
        ]
        with self.policy():
            written = self.source.answers(requests, step)
        answered = zip(self._share(), written, strict=True)
        return self._gather([self._checked(pair, rollout) for pair, rollout in answered])

    def taught(self, step: int) -> list[Target]:
        """Let the teacher write, without second attempts; the targets hold measures, no rule was applied to them."""
        # Where a step asks no teacher, the student being right, the teacher is asked as if the student had not tried.
        pairs = [
            replace(pair, feedback=None) if pair.feedback is not None and pair.feedback.drop else pair
            for pair in self.source.begin(self._share(), step)
        ]
        with self.source.open():
            written = self.source.rollouts(pairs, step=step, attempt=NoiseKey.PROBE_TAUGHT)
        rewritten = zip(pairs, written, strict=True)
        screened = [self._screened(pair, rollout) for pair, rollout in rewritten if rollout is not None]
        with self.policy():
            return self._gather(self.reviewer.measure(screened, step))

    def _checked(self, pair: PromptPair, rollout: Rollout) -> Target:
        """Return a text as it was written, with the check's verdict."""
        text = self.screen.decode(rollout.token_ids)
        correct = self.screen.check(text, pair.demonstration).correct
        copied = is_verbatim(text, pair.demonstration.shown)
        return Target(pair, rollout.token_ids, text, "keep", "", rollout, correct=correct, is_verbatim=copied)

    def _screened(self, pair: PromptPair, rollout: Rollout) -> Target:
        """Return what the screen makes of a text, checked also where a cheaper reason refuses it."""
        screened = self.screen.judge(pair, rollout, 0)
        if screened.correct is None:
            screened = replace(screened, correct=self._checked(pair, rollout).correct)
        return screened

    def _gather(self, mine: Sequence[Target]) -> list[Target]:
        return [target for part in self.ranks.gather(without_records(mine)) for target in part]

    def _share(self) -> Sequence[PromptPair]:
        return self.pairs[self.ranks.rank :: self.ranks.num_ranks]
