"""The signals of a micro-batch: the teacher's law where the rollout recorded it, else from a forward of its own.

Shape letters: N loss tokens, M of them learned by the objective itself, C tokens of a completion, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from onpolicy_sdft.data.collate import collate
from onpolicy_sdft.models.teacher import Teacher
from onpolicy_sdft.objectives.laws import FullLaw, Signals, TopLaw
from onpolicy_sdft.objectives.objective import Objective
from onpolicy_sdft.types import MicroBatch, Row


@dataclass(frozen=True, slots=True)
class LawSource:
    """Gives each micro-batch what its objective needs, just before it is learned; no gradient."""

    teacher: Teacher
    objective: Objective
    pad_token_id: int

    def __call__(self, batch: MicroBatch) -> Signals:
        """Return the signals of a micro-batch."""
        own = [row for row in batch.rows if not row.plain and len(row.target_ids) > row.num_skipped]
        device = batch.labels.device
        return Signals(
            batch.weights,
            batch.plain,
            teacher=self._teacher_law(own, device) if own and self.objective.needs_teacher else None,
            anchor=self._anchor(batch),
            sampling_logprobs_M=_drawn(own, device) if own and self.objective.importance else None,
        )

    def _teacher_law(self, rows: Sequence[Row], device: torch.device) -> FullLaw | TopLaw:
        recorded = [row.rollout for row in rows if row.rollout and row.rollout.prompt_token_ids == row.teacher_ids]
        if len(recorded) == len(rows):  # every one was written under the teacher's prompt, by the teacher's weights
            tops = [(rollout.top, row.num_skipped) for rollout, row in zip(recorded, rows, strict=True)]
            if all(top is not None for top, _ in tops):
                return TopLaw(
                    torch.cat([top.token_ids[skip:] for top, skip in tops if top is not None]).to(device),
                    torch.cat([top.logprobs[skip:] for top, skip in tops if top is not None]).to(device),
                )
            hidden = [(rollout.hidden, row.num_skipped) for rollout, row in zip(recorded, rows, strict=True)]
            if all(kept is not None for kept, _ in hidden):
                kept_MD = torch.cat([kept[skip:] for kept, skip in hidden if kept is not None]).to(device)
                return FullLaw(kept_MD, self.teacher.head())
        asked = [replace(row, prompt_ids=row.teacher_ids) for row in rows]
        return FullLaw(self.teacher.score(collate(asked, self.pad_token_id, device)), self.teacher.head())

    def _anchor(self, batch: MicroBatch) -> FullLaw | None:
        kind = self.teacher.anchor
        if kind is None or not self.objective.anchor_weight or not batch.num_loss_tokens:
            return None
        return FullLaw(self.teacher.score(batch, kind), self.teacher.head(kind))


def _drawn(rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    """Return the log-probabilities the targets were drawn with; a demonstration was not drawn: its ratio is 1."""
    found: list[float] = []
    for row in rows:
        num_tokens = len(row.target_ids) - row.num_skipped
        found += (
            [float("nan")] * num_tokens if row.rollout is None else row.rollout.sampling_logprobs[row.num_skipped :]
        )
    return torch.tensor(found, dtype=torch.float32, device=device)
