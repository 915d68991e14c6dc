"""One step of on-policy self-distillation. The whole algorithm is :meth:`Trainer.train_step`.

    y ~ pi_theta( . | x, demonstration )          rollout: current weights, no gradient
    loss = - log pi_theta( y | x )                learn: the bare prompt, one optimizer step, repeat

Other methods (plain fine-tuning, offline SDFT, divergences from a teacher) are settings of its parts: where targets
come from, the prompt they are sampled under, the objective, the teacher's weights.

Sources: Yang et al., ACL 2024, arXiv:2402.13669 (the rewriting); Shenfeld et al., 2026, arXiv:2601.19897 (the loop).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from onpolicy_sdft.models.packed import attention_of
from onpolicy_sdft.objectives.objective import LossPart
from onpolicy_sdft.screening.pick import pick_best
from onpolicy_sdft.train.oom import OomRetry
from onpolicy_sdft.train.recorder import Recorder
from onpolicy_sdft.train.state import TrainState, Update

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from onpolicy_sdft.models.weights import PolicyWeights
    from onpolicy_sdft.objectives.objective import Objective
    from onpolicy_sdft.screening.review import BarePromptReview
    from onpolicy_sdft.screening.screen import Screen
    from onpolicy_sdft.train.backend import Backend
    from onpolicy_sdft.train.batch import StepBatch
    from onpolicy_sdft.train.pairing import Pairing
    from onpolicy_sdft.train.source import TargetSource
    from onpolicy_sdft.train.teacher_scorer import TeacherScorer
    from onpolicy_sdft.types import StepMetrics, Target


@dataclass
class Trainer:
    """The parts of a step; ``backend`` has prepared ``policy`` and the schedule's optimizer."""

    policy: torch.nn.Module  # models.policy.Policy, wrapped
    source: TargetSource
    screen: Screen
    pairing: Pairing
    teacher_scorer: TeacherScorer
    objective: Objective
    weights: PolicyWeights
    backend: Backend
    schedule: LRScheduler
    max_grad_norm: float
    state: TrainState
    num_samples: int = 1  # rollouts of each demonstration
    reviewer: BarePromptReview | None = None  # None: nothing can be measured with weights that are divided
    picks_best: bool = False  # of the samples of a demonstration one is learned

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.backend, self.objective.name, self.pairing.num_skipped)
        self.retry = OomRetry(self.backend, self.source, self.pairing, self.weights, self.state)

    def train_step(self, batch: StepBatch) -> StepMetrics:
        """Sample, screen and learn one batch of demonstrations; every rank calls it with the same batch."""
        record, sample = self.recorder.begin(), partial(self.source.rollouts, step=self.state.step)
        with record.phase("rollout"):
            examples = self.source.begin(batch.mine, self.state.step)  # a feedback teacher's student tries first
            with self.source.open(), self.screen.watch(examples) as watch:
                rollouts = sample(examples, watch=watch)  # 1. Rollout: current weights, demonstration in context
                with record.phase("screen"):  # 2. Screen: each text as it ended; may sample again
                    drawn = watch.targets(rollouts, lambda again, attempt: sample(again, attempt=attempt))
        with record.phase("screen"):
            targets = self.review(drawn)  # what the policy makes of them, shown the bare prompt only
        record.note(self.source.figures(), watch.figures(), self.screen.figures())
        with record.phase("rollout_wait"):
            all_targets = batch.gather(targets)
        with record.phase("learn"):
            update = self.retry.learn(self.learn, targets)  # 3. Pair with the bare prompt, 4. Learn
        self.state.is_half = True  # until the loop has noted what the step came to
        if not update.skipped:
            self.weights.follow(self.state.num_updates + 1)  # the average of the weights moves
            self.schedule.step()
        self.source.remember(all_targets)  # these rollouts are the next epoch's drafts
        self.state.advance(update, all_targets if self.picks_best else ())
        return record.finish(all_targets, update, self.state)

    def review(self, targets: Sequence[Target]) -> list[Target]:
        """Measure rollouts under the policy's own weights, apply the rules and pick; every rank must call it."""
        if self.reviewer is not None:
            targets = self.retry.review(self.reviewer, targets, self.state.step)
        return pick_best(targets, self.num_samples, self.state.learned) if self.picks_best else list(targets)

    def learn(self, targets: Sequence[Target]) -> Update:
        """Take one optimizer step with one denominator, unless there is no target or a number is not finite."""
        batches = self.pairing.micro_batches(targets, self.state.num_halvings, self.backend)
        update = Update.begin(batches, float(self.schedule.get_last_lr()[0]), self.backend)
        if not update.num_counted_tokens:
            return replace(update, skipped="all_dropped")
        sums = torch.zeros(1 + len(LossPart), dtype=torch.float64)
        with self.backend.oom_on_all_ranks():
            with self.recorder.phase("score"):
                loss_inputs = self.teacher_scorer(batches)  # the teacher's distributions, if they are needed
                self.weights.release()  # what was gathered to sample and to score
            self.policy.train()
            for batch, inputs in zip(batches, loss_inputs, strict=True):
                with self.backend.micro_batch(last=batch is batches[-1]), attention_of(batch, self.weights.live):
                    loss_sum, parts = self.policy(batch, self.objective, inputs)  # head and loss are in the forward
                    self.backend.backward(loss_sum / update.num_counted_tokens)
                sums += torch.cat([loss_sum.detach().double()[None], parts]).cpu()
        total, *others = map(sum, zip(*self.backend.gather(sums.tolist()), strict=True))
        self.state.is_half = True
        grad_norm = self.backend.step_if_finite(total, self.max_grad_norm)
        skipped = "" if math.isfinite(grad_norm) else "not_finite"
        return replace(update, loss_sum=total, parts=tuple(others), grad_norm=grad_norm, skipped=skipped)
