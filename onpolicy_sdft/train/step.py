"""One step of on-policy self-distillation. The whole algorithm is :meth:`Trainer.train_step`.

    y ~ pi_theta( . | x, demonstration )          rollout: current weights, no gradient
    loss = - log pi_theta( y | x )                learn: the bare prompt, one optimizer step, repeat

Sources: Yang et al., ACL 2024, arXiv:2402.13669 (rewriting by the model itself); Shenfeld et al., 2026,
arXiv:2601.19897 (the on-policy loop).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from onpolicy_sdft.data.collate import collate, split_by_budget
from onpolicy_sdft.train.telemetry import rollout_metrics, screen_metrics
from onpolicy_sdft.types import MicroBatch, StepMetrics, Target, Views

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from onpolicy_sdft.models.policy import Objective, Policy
    from onpolicy_sdft.screening.screen import Screen
    from onpolicy_sdft.train.backend import Backend
    from onpolicy_sdft.train.source import TargetSource


@dataclass
class TrainState:
    """Where the run is; all of it goes into a checkpoint."""

    step: int = 0  # steps done, skipped ones included
    num_updates: int = 0  # optimizer steps taken
    total_loss_tokens: int = 0  # learned so far, over all ranks
    bad_steps_in_a_row: int = 0
    best_score: float | None = None
    validations_without_gain: int = 0


@dataclass(frozen=True, slots=True)
class Learned:
    """How the learning part of a step went."""

    loss_sum: float  # nats, over all loss tokens and ranks
    grad_norm: float  # before clipping
    skipped: str  # why no update was made; empty when one was


@dataclass
class Trainer:
    """The parts of a step; ``backend`` has prepared ``policy`` and the schedule's optimizer."""

    policy: Policy
    source: TargetSource
    screen: Screen
    objective: Objective
    backend: Backend
    schedule: LRScheduler
    max_grad_norm: float
    micro_batch_tokens: int
    pad_token_id: int
    state: TrainState
    clock: Callable[[], float] = time.perf_counter

    def train_step(self, views: Sequence[Views]) -> StepMetrics:
        """Write, screen and learn one batch of demonstrations (this rank's share of it)."""
        times = [self.clock()]
        write = partial(self.source.rollouts, step=self.state.step)
        rollouts = write(views)  # 1. Rollout: current weights, demonstration in context
        times.append(self.clock())
        targets = self.screen(views, rollouts, lambda v, attempt: write(v, attempt=attempt))  # 2. Screen
        times.append(self.clock())
        batches = self.pair(targets)  # 3. Pair with the bare prompt: same number of micro-batches on every rank
        num_loss_tokens = int(self.backend.sum_over_ranks(sum(b.num_loss_tokens for b in batches)))
        learned = self.learn(batches, num_loss_tokens)  # 4. Learn, unless everything was dropped
        times.append(self.clock())
        values = {
            "loss/nll": learned.loss_sum / max(1, num_loss_tokens),
            "train/grad_norm": learned.grad_norm,
            "train/lr": float(self.schedule.get_last_lr()[0]),
            "train/num_loss_tokens": num_loss_tokens,
            "train/num_micro_batches": len(batches),
            **{
                f"time/{part}_seconds": times[i + 1] - times[i] for i, part in enumerate(("rollout", "screen", "learn"))
            },
            "time/step_seconds": times[-1] - times[0],
            **self.source.figures(),
            **rollout_metrics(targets),
            **screen_metrics(targets),
        }
        self.source.remember(targets)  # 5. Remember: these rollouts are the next epoch's drafts
        self._advance(num_loss_tokens, learned.skipped)
        values["train/total_loss_tokens"] = self.state.total_loss_tokens
        return StepMetrics(self.state.step, learned.skipped, values, tuple(targets))

    def learn(self, batches: Sequence[MicroBatch], num_loss_tokens: int) -> Learned:
        """Take one optimizer step; one denominator for all of it, known before any backward.

        Nothing is updated when there is no loss token on any rank, or the loss or gradient is not finite.
        """
        if not num_loss_tokens:
            return Learned(0.0, 0.0, "all_dropped")
        self.policy.train()
        loss_sum = 0.0
        for batch in batches:
            out = self.policy(batch, self.objective)  # head and loss run inside the wrapped forward
            self.backend.backward(out.loss_sum / num_loss_tokens, last=batch is batches[-1])
            loss_sum += out.loss_sum.item()
        loss_sum = self.backend.sum_over_ranks(loss_sum)
        if not math.isfinite(loss_sum):
            self.backend.discard_gradients()
            return Learned(loss_sum, math.nan, "not_finite")
        grad_norm = self.backend.optimizer_step(self.max_grad_norm)
        return Learned(loss_sum, grad_norm, "" if math.isfinite(grad_norm) else "not_finite")

    def pair(self, targets: Sequence[Target]) -> list[MicroBatch]:
        """Put each target behind its bare prompt; every rank gets the same number of micro-batches."""
        pairs = [(target.views.student_ids, target.token_ids) for target in targets if target.token_ids]
        groups = split_by_budget(pairs, self.micro_batch_tokens)
        num_groups = self.backend.max_over_ranks(len(groups))
        # A rank that ran out still runs a backward of zero loss tokens, so that collectives stay aligned.
        groups += [[((self.pad_token_id,), ())]] * (num_groups - len(groups))
        return [collate(group, self.pad_token_id, self.backend.device) for group in groups]

    def _advance(self, num_loss_tokens: int, skipped: str) -> None:
        self.state.step += 1
        self.state.bad_steps_in_a_row = self.state.bad_steps_in_a_row + 1 if skipped else 0
        if not skipped:
            self.schedule.step()
            self.state.num_updates += 1
            self.state.total_loss_tokens += num_loss_tokens


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return the number of trainable and of all parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)
