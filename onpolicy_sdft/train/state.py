"""Where a run is, and how its last step went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from onpolicy_sdft.screening.pick import LearnedTexts, remember
from onpolicy_sdft.types import MicroBatch, Ranks, Target


@dataclass(frozen=True, slots=True)
class Update:
    """How the learning part of a step went; sums are over all ranks."""

    lr: float
    num_micro_batches: int  # on each rank
    num_loss_tokens: int
    num_counted_tokens: int  # the denominator
    padding_rate: float  # share of padding among the tokens of the micro-batches
    skipped: str = ""  # why no optimizer step was taken; empty when one was
    loss_sum: float = 0.0  # nats, over all loss tokens
    parts: tuple[float, ...] = ()  # what else the objective summed; see objective.LossPart
    grad_norm: float = 0.0  # before clipping

    @classmethod
    def begin(cls, batches: Sequence[MicroBatch], lr: float, ranks: Ranks) -> Self:
        """Count the tokens of all ranks' micro-batches: the denominator is known before any of them is learned."""
        mine = (
            sum(batch.num_loss_tokens for batch in batches),
            sum(batch.num_counted_tokens for batch in batches),
            sum(batch.num_padding_tokens for batch in batches),
            sum(batch.input_ids.numel() for batch in batches),
        )
        learned, counted, padding, tokens = (sum(count) for count in zip(*ranks.gather(mine), strict=True))
        return cls(lr, len(batches), learned, counted, padding / max(1, tokens))


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
    unfinished: dict[str, Any] | None = None  # what is to be logged of the last step, until it is validated and logged
    is_half: bool = False  # weights have moved, what goes with them has not: nothing to go on from

    @property
    def num_logged(self) -> int:
        """Steps that are validated and logged: all, or all but the last."""
        return self.step - (self.unfinished is not None)

    def advance(self, update: Update, remembered: Sequence[Target] = ()) -> None:
        """Count a step, and remember the texts that it learned of these targets, if it learned any."""
        self.step += 1
        if update.skipped:
            self.bad_steps_in_a_row += 1
            return
        remember(self.learned, remembered)
        self.bad_steps_in_a_row = 0
        self.num_updates += 1
        self.total_loss_tokens += update.num_loss_tokens

    def is_better(self, score: float | None) -> bool:
        """Whether a validation's score is the best so far."""
        return score is not None and (self.best_score is None or score > self.best_score)

    def finish(self, score: float | None) -> None:
        """Count a step as validated and logged, and its score, if it has one."""
        self.unfinished = None
        if self.is_better(score):
            self.best_score, self.validations_without_gain = score, 0
        elif score is not None:
            self.validations_without_gain += 1
