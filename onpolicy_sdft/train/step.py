"""One step of on-policy self-distillation. The whole algorithm is :meth:`Trainer.train_step`.

    y ~ pi_theta( . | x, demonstration )          rollout: current weights, no gradient
    loss = - log pi_theta( y | x )                learn: the bare prompt, one optimizer step, repeat

Other methods (plain fine-tuning, offline SDFT, divergences from a teacher) are settings of its parts: where targets
come from, the prompt they are sampled under, the objective, the teacher's weights.

Sources: Yang et al., ACL 2024, arXiv:2402.13669 (rewriting by the model itself); Shenfeld et al., 2026,
arXiv:2601.19897 (the on-policy loop).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from onpolicy_sdft.data.sharing import collect, deal_groups
from onpolicy_sdft.errors import TrainingError
from onpolicy_sdft.models.packed import attention_of
from onpolicy_sdft.objectives.objective import FIGURES
from onpolicy_sdft.screening.pick import LearnedTexts, pick_best, remember
from onpolicy_sdft.train.backend import MemoryRanOut
from onpolicy_sdft.train.memory import memory_mib
from onpolicy_sdft.train.source import spread
from onpolicy_sdft.train.telemetry import (
    length_metrics,
    loss_metrics,
    mean_over_ranks,
    review_metrics,
    rollout_metrics,
    screen_metrics,
    time_metrics,
    without_records,
)
from onpolicy_sdft.types import MicroBatch, StepMetrics, Target, Views

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from onpolicy_sdft.models.teacher import Teacher
    from onpolicy_sdft.objectives.objective import Objective
    from onpolicy_sdft.screening.review import Review
    from onpolicy_sdft.screening.screen import Screen
    from onpolicy_sdft.train.backend import Backend
    from onpolicy_sdft.train.laws import LawSource
    from onpolicy_sdft.train.pairing import Pairing
    from onpolicy_sdft.train.source import TargetSource


#: Micro-batches of scoring are not halved below so many tokens: one text may be longer.
_FEWEST_TOKENS = 64


@dataclass
class TrainState:
    """Where the run is; all of it goes into a checkpoint."""

    step: int = 0  # steps done, skipped ones included
    num_updates: int = 0  # optimizer steps taken
    total_loss_tokens: int = 0  # learned so far, over all ranks
    bad_steps_in_a_row: int = 0
    best_score: float | None = None
    validations_without_gain: int = 0
    num_halvings: int = 0  # of train.micro_batch_tokens, for running out of memory
    num_releases: int = 0  # of what rollouts keep, for the same
    learned: LearnedTexts = field(default_factory=dict)  # texts learned so far, where one of several samples is picked
    bare: dict[str, Any] | None = None  # the bare answers that rollouts are compared with
    limits: dict[str, float | None] = field(default_factory=dict)  # of the review's rules, where the probe set them


@dataclass(frozen=True, slots=True)
class Learned:
    """How the learning part of a step went."""

    loss_sum: float  # nats, over all loss tokens and ranks
    figures: tuple[float, ...]  # what else the objective summed, over all ranks
    grad_norm: float  # before clipping
    skipped: str  # why no update was made; empty when one was
    score_seconds: float = 0.0  # the teacher's own forwards


@dataclass
class Trainer:
    """The parts of a step; ``backend`` has prepared ``policy`` and the schedule's optimizer."""

    policy: torch.nn.Module  # models.policy.Policy, wrapped
    source: TargetSource
    screen: Screen
    pairing: Pairing
    laws: LawSource
    objective: Objective
    teacher: Teacher
    backend: Backend
    schedule: LRScheduler
    max_grad_norm: float
    state: TrainState
    num_samples: int = 1  # rollouts of each demonstration
    reviewer: Review | None = None  # None: nothing can be measured with weights that are divided
    picks_best: bool = False  # of the samples of a demonstration one is learned
    clock: Callable[[], float] = time.perf_counter
    is_updating: bool = False  # weights have moved, the rest of the state has not yet

    def train_step(self, views: Sequence[Views]) -> StepMetrics:
        """Write, screen and learn one batch of demonstrations; every rank is given all of it and does its share."""
        times = [self.clock()]
        views = spread(views, self.num_samples)
        sizes = [len(view.teacher_ids or view.student_ids) + len(view.response_ids) for view in views]
        shares = deal_groups(sizes, self.num_samples, self.backend.num_ranks)
        share = self.source.begin([views[index] for index in shares[self.backend.rank]], self.state.step)
        write = partial(self.source.rollouts, step=self.state.step)
        with self.source.open(), self.screen.watch(share) as watch:
            rollouts = write(share, watch=watch)  # 1. Rollout: current weights, demonstration in context
            memory = {"memory/rollout_mib": memory_mib(self.backend.device)}
            times.append(self.clock())
            # 2. Screen: each text as it ended; here only the last verdicts are waited for.
            drawn = watch.targets(rollouts, lambda v, attempt: write(v, attempt=attempt))
        sampled = {**self.source.figures(), **watch.figures()}  # before the review samples texts of its own
        mine = self.review(drawn)  # what the policy makes of them, shown the bare prompt only
        if self.picks_best:
            mine = pick_best(mine, self.num_samples, self.state.learned)
        times.append(self.clock())
        targets = collect(shares, self.backend.gather(without_records(mine)))
        times.append(self.clock())
        batches = self.pair(mine)  # 3. Pair with the bare prompt: same number of micro-batches on every rank
        num_loss_tokens = self._sum(b.num_loss_tokens for b in batches)
        num_counted_tokens = self._sum(b.num_counted_tokens for b in batches)
        lr = float(self.schedule.get_last_lr()[0])
        learned = self._learn_in_memory(mine, batches, num_counted_tokens)  # 4. Learn, unless everything was dropped
        memory["memory/learn_mib"] = memory_mib(self.backend.device)
        if not learned.skipped:
            self.teacher.follow(self.state.num_updates + 1)  # 5. Follow: the average moves
        self.source.remember(targets)  # these rollouts are the next epoch's drafts
        if self.picks_best:
            remember(self.state.learned, targets)
        self._advance(num_loss_tokens, learned.skipped)
        times.append(self.clock())
        own = {**time_metrics(times, learned.score_seconds), **sampled}
        values = {
            **loss_metrics(self.objective.name, learned.loss_sum, learned.figures, num_counted_tokens),
            **({"train/grad_norm": learned.grad_norm} if num_counted_tokens else {}),
            "train/lr": lr,
            "train/num_loss_tokens": num_loss_tokens,
            "train/total_loss_tokens": self.state.total_loss_tokens,
            "train/num_micro_batches": len(batches),
            "train/padding_rate": self._padding_rate(batches),
            "train/num_halvings": self.state.num_halvings,
            "train/num_releases": self.state.num_releases,
            **mean_over_ranks(self.backend, own),
            **{name: self.backend.max_over_ranks(each) for name, each in memory.items()},
            **rollout_metrics(targets),
            **screen_metrics(targets),
            **review_metrics(targets),
            **(self.screen.bare.figures() if self.screen.bare else {}),
            **length_metrics(targets, self.pairing.num_skipped),
        }
        return StepMetrics(self.state.step, learned.skipped, values, tuple(targets))

    def review(self, targets: Sequence[Target]) -> list[Target]:
        """Measure rollouts under the policy's own weights, and apply the rules; every rank must call it."""
        if self.reviewer is None:
            return list(targets)
        while True:
            try:
                with self.backend.memory_of_all(), self.teacher.weights("live"):
                    return self.reviewer(targets, self.state.step)
            except torch.OutOfMemoryError as error:
                raise self._out_of_memory(str(error)) from error
            except MemoryRanOut as error:
                said = str(error)
            self._make_room(said, self.pairing.micro_batch_tokens >> self.state.num_halvings > _FEWEST_TOKENS)

    def _learn_in_memory(
        self, mine: Sequence[Target], batches: Sequence[MicroBatch], num_counted_tokens: int
    ) -> Learned:
        """Learn; where memory runs out, again without the slots of rollouts, then in micro-batches of half the size.

        Raises:
            TrainingError: If a micro-batch of one target is too large, or what was begun cannot be forgotten.
        """
        while True:
            try:
                return self.learn(batches, num_counted_tokens)
            except torch.OutOfMemoryError as error:
                raise self._out_of_memory(str(error)) from error
            except MemoryRanOut as error:
                said = str(error)  # not the error: its frames keep what was broken off
            self.backend.discard_gradients()
            can_halve = self.backend.max_over_ranks(max(len(batch.rows) for batch in batches)) > 1
            if self._make_room(said, can_halve):
                num_batches = len(batches)
                while len(batches := self.pair(mine)) == num_batches:
                    self.state.num_halvings += 1

    def _make_room(self, said: str, can_halve: bool) -> bool:
        """Give back what rollouts keep, else halve micro-batches; whether they were halved.

        Raises:
            TrainingError: If neither is possible.
        """
        if self.backend.max_over_ranks(int(self.source.release())):
            self.state.num_releases += 1
            return False
        if not can_halve:
            raise self._out_of_memory(said)
        self.state.num_halvings += 1
        return True

    def _out_of_memory(self, said: str) -> TrainingError:
        budget = self.pairing.micro_batch_tokens >> self.state.num_halvings
        return TrainingError(
            f"Out of memory while learning micro-batches of {budget} tokens (rank {self.backend.rank}): {said}. "
            "Way out: a lower train.micro_batch_tokens or rollout.kv_fraction, model.gradient_checkpointing, or a "
            "backend that divides more (launch/accelerate)."
        )

    def learn(self, batches: Sequence[MicroBatch], num_counted_tokens: int) -> Learned:
        """Take one optimizer step; one denominator for all of it, known before any backward.

        Nothing is updated when there is no target on any rank, or the loss or gradient is not finite.
        """
        if not num_counted_tokens:
            return Learned(0.0, (0.0,) * len(FIGURES), 0.0, "all_dropped")
        sums = torch.zeros(1 + len(FIGURES), dtype=torch.float64)
        with self.backend.memory_of_all():
            started = self.clock()
            signals = self.laws(batches)  # the teacher's laws where the objective needs them, no gradient
            self.teacher.release()  # what was gathered to write and to score
            score_seconds = self.clock() - started
            self.policy.train()
            for batch, law in zip(batches, signals, strict=True):
                is_last = batch is batches[-1]
                with self.backend.micro_batch(last=is_last), attention_of(batch, self.teacher.live):
                    # Head and loss are inside the wrapped forward.
                    loss_sum, figures = self.policy(batch, self.objective, law)
                    self.backend.backward(loss_sum / num_counted_tokens)
                sums += torch.cat([loss_sum.detach().double()[None], figures]).cpu()
        total, *others = map(sum, zip(*self.backend.gather(sums.tolist()), strict=True))
        if not math.isfinite(total):
            self.backend.discard_gradients()
            return Learned(total, tuple(others), math.nan, "not_finite", score_seconds)
        self.is_updating = True
        grad_norm = self.backend.optimizer_step(self.max_grad_norm)
        skipped = "" if math.isfinite(grad_norm) else "not_finite"
        return Learned(total, tuple(others), grad_norm, skipped, score_seconds)

    def pair(self, targets: Sequence[Target]) -> list[MicroBatch]:
        """Put each target behind its bare prompt; every rank gets the same number of micro-batches."""
        groups = self.pairing.groups(targets, self.state.num_halvings)
        num_groups = self.backend.max_over_ranks(len(groups))
        # A rank that ran out still runs a backward of zero loss tokens, so that collectives stay aligned.
        groups += [[]] * (num_groups - len(groups))
        return [self.pairing.batch(group, self.backend.device) for group in groups]

    def _padding_rate(self, batches: Sequence[MicroBatch]) -> float:
        """Return the share of padding among the tokens of micro-batches, over all ranks."""
        num_tokens = self._sum(b.input_ids.numel() for b in batches)
        return self._sum(b.num_padding_tokens for b in batches) / max(1, num_tokens)

    def _sum(self, counts: Iterable[int]) -> int:
        return int(self.backend.sum_over_ranks(sum(counts)))

    def _advance(self, num_loss_tokens: int, skipped: str) -> None:
        self.state.step += 1
        self.state.bad_steps_in_a_row = self.state.bad_steps_in_a_row + 1 if skipped else 0
        if not skipped:
            self.schedule.step()
            self.state.num_updates += 1
            self.state.total_loss_tokens += num_loss_tokens
        self.is_updating = False


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return the number of trainable and of all parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)
