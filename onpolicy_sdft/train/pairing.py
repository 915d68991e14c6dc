"""Targets behind their bare prompts: which rows a step learns, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from onpolicy_sdft.data.collate import collate, split_by_budget, split_to_fill
from onpolicy_sdft.types import MicroBatch, Target, TrainingRow

if TYPE_CHECKING:
    from onpolicy_sdft.train.backend import Backend


@dataclass(frozen=True, slots=True)
class Pairing:
    """How targets become micro-batches.

    Args:
        micro_batch_tokens: Tokens of a forward, padding included where rows are padded.
        pad_token_id: Any valid id.
        has_distributions: Whether the objective compares distributions. None belongs to a demonstration that stands in
            for a refused rollout, so it is learned by nll then.
        num_skipped: First tokens of a target that are not learned.
        position_weights: See :func:`~onpolicy_sdft.data.collate.collate`.
        demonstration_weight: Weight of the demonstration's own nll beside the target's loss; its tokens are not in
            the denominator.
        packed: Rows stand one behind the other, padding only at the end.
        fallback_clip: Largest loss, in nats, of a token of a demonstration that stands in for a refused rollout.
    """

    micro_batch_tokens: int
    pad_token_id: int
    has_distributions: bool = False
    num_skipped: int = 0
    position_weights: tuple[float, ...] = ()
    demonstration_weight: float = 0.0
    packed: bool = False
    fallback_clip: float | None = None

    def rows(self, targets: Sequence[Target]) -> list[TrainingRow]:
        """Return what is learned of a step's targets; dropped ones give nothing."""
        found, with_demonstration = [], set[tuple[str, int]]()
        for target in targets:
            pair = target.pair
            if len(target.token_ids) > self.num_skipped:
                is_text = target.rollout is None or target.verdict == "fallback"
                found.append(
                    TrainingRow(
                        pair.student_ids,
                        target.token_ids,
                        pair.teacher_ids,
                        rollout=None if is_text else target.rollout,
                        plain=is_text and self.has_distributions,
                        weight=target.weight,
                        num_skipped=self.num_skipped,
                        clip=self.fallback_clip if target.verdict == "fallback" else None,
                    )
                )
            # Once, however many samples of it are learned; where none is, the example is dropped whole.
            is_due = self.demonstration_weight and pair.presented not in with_demonstration
            if is_due and target.verdict not in ("drop", "spare"):
                with_demonstration.add(pair.presented)
                found.append(
                    TrainingRow(
                        pair.student_ids,
                        pair.response_ids,
                        plain=True,
                        counted=False,
                        weight=self.demonstration_weight,
                    )
                )
        return found

    def groups(self, targets: Sequence[Target], num_halvings: int = 0) -> list[list[TrainingRow]]:
        """Return rows in groups that fit a forward each, of so many times half the tokens."""
        return self.split(self.rows(targets), num_halvings)

    def split(self, rows: Sequence[TrainingRow], num_halvings: int = 0) -> list[list[TrainingRow]]:
        """Put rows into groups; see :meth:`groups`."""
        split = split_to_fill if self.packed else split_by_budget
        return split(rows, max(1, self.micro_batch_tokens >> num_halvings))

    def micro_batches(self, targets: Sequence[Target], num_halvings: int, backend: Backend) -> list[MicroBatch]:
        """Return this rank's micro-batches of a step; every rank gets the same number."""
        groups = self.groups(targets, num_halvings)
        # A rank that ran out still runs a backward of zero loss tokens, so that collectives stay aligned.
        groups += [[]] * (backend.max_over_ranks(len(groups)) - len(groups))
        return [self.batch(group, backend.device) for group in groups]

    def batch(self, rows: Sequence[TrainingRow], device: torch.device | str) -> MicroBatch:
        """Collate a group; an empty one becomes a micro-batch of zero loss tokens."""
        empty = TrainingRow((self.pad_token_id,), ())
        return collate(
            rows or [empty], self.pad_token_id, device, self.position_weights, packed=self.packed,
            max_tokens=self.micro_batch_tokens,
        )  # fmt: skip
