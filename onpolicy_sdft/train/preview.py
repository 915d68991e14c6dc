"""A look at a few rows outside the steps: the policy's bare answers, and what its teacher would write now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onpolicy_sdft.train.source import PolicySource
from onpolicy_sdft.train.telemetry import without_records
from onpolicy_sdft.types import NoiseKey, Rollout, RolloutRequest, Target, Views

if TYPE_CHECKING:
    from onpolicy_sdft.train.step import Trainer

#: Attempt of the noise keys of a preview: no draw of a step has it.
_ATTEMPT = 3_000_000


@dataclass(frozen=True, slots=True)
class Preview:
    """Looks at the same rows each time; ranks share them, and all get what was written.

    Args:
        trainer: Writes and judges.
        views: The rows.
    """

    trainer: Trainer  # with a reviewer
    views: Sequence[Views]

    def bare(self) -> list[Target]:
        """Let the policy answer from the bare prompts; the targets hold them and whether they are right."""
        source = self._source()
        requests = [
            RolloutRequest(
                view.student_ids,
                NoiseKey(source.sampling.seed, self.trainer.state.step, view.demonstration.example_id, 0, _ATTEMPT),
                source.sampling.max_new_tokens,
            )
            for view in self._share()
        ]
        with self.trainer.teacher.weights("live"):
            written = source.answers(requests, self.trainer.state.step)
        pairs = zip(self._share(), written, strict=True)
        return self._gather([self._checked(view, rollout) for view, rollout in pairs])

    def taught(self) -> list[Target]:
        """Let the teacher write, without second attempts; the targets hold measures, no rule was applied to them."""
        source, step = self._source(), self.trainer.state.step
        with source.open():
            written = source.rollouts(self._share(), step=step, attempt=_ATTEMPT)
        pairs = zip(self._share(), written, strict=True)
        screened = [self._screened(view, rollout) for view, rollout in pairs if rollout is not None]
        reviewer = self.trainer.reviewer
        assert reviewer is not None
        with self.trainer.teacher.weights("live"):
            return self._gather(reviewer.measure(screened, step))

    def _checked(self, view: Views, rollout: Rollout) -> Target:
        """Return a text as it was written, with the check's verdict."""
        screen = self.trainer.screen
        text = screen.decode(rollout.token_ids)
        correct = screen.task.check(text, view.demonstration).correct
        return Target(view, rollout.token_ids, text, "keep", "", rollout, correct=correct)

    def _screened(self, view: Views, rollout: Rollout) -> Target:
        """Return what the screen makes of a text, checked also where a cheaper reason refuses it."""
        screened = self.trainer.screen.judge(view, rollout, 0)
        return replace(screened, correct=self._checked(view, rollout).correct)

    def _gather(self, mine: Sequence[Target]) -> list[Target]:
        parts = self.trainer.backend.gather(without_records(mine))
        return [target for part in parts for target in part]

    def _share(self) -> Sequence[Views]:
        backend = self.trainer.backend
        return self.views[backend.rank :: backend.num_ranks]

    def _source(self) -> PolicySource:
        assert isinstance(self.trainer.source, PolicySource)
        return self.trainer.source
