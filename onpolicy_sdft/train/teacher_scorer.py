"""Loss inputs of micro-batches: the teacher's distribution as the rollout recorded it, else from a forward of its own.

Shape letters: N loss tokens, M of them learned by the objective itself, C tokens of a completion, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from onpolicy_sdft.data.collate import collate
from onpolicy_sdft.models.policy import Head
from onpolicy_sdft.models.weights import Kind, PolicyWeights
from onpolicy_sdft.objectives.inputs import LossInputs, TeacherHidden, TopKLogprobs
from onpolicy_sdft.objectives.objective import Objective
from onpolicy_sdft.types import MicroBatch, TrainingRow


@dataclass(frozen=True, slots=True)
class TeacherScorer:
    """Gives each micro-batch of a step what its objective needs, before the first is learned; no gradient.

    All of a step's are made at once, so that the teacher's weights are put in place (and, where they are divided
    among ranks, gathered) once: what lasts until it is learned are hidden states, never distributions over the
    vocabulary.

    Args:
        weights: Shows the teacher's and the anchor's.
        teacher: Kind of weights that the objective compares with.
        anchor: Kind of weights that it is anchored to, if it is.
        objective: Says what it needs.
        pad_token_id: Fills rows up.
    """

    weights: PolicyWeights
    teacher: Kind
    anchor: Kind | None
    objective: Objective
    pad_token_id: int

    def __call__(self, batches: Sequence[MicroBatch]) -> list[LossInputs]:
        """Return the signals of a step's micro-batches; every rank must call it."""
        owned = [
            [row for row in batch.rows if not row.plain and len(row.target_ids) > row.num_skipped] for batch in batches
        ]
        distributions: Sequence[TeacherHidden | TopKLogprobs | None] = [None] * len(batches)
        if self.objective.needs_teacher:
            distributions = self._teacher_distributions(owned, batches)
        anchors: Sequence[TeacherHidden | None] = [None] * len(batches)
        if self.anchor is not None and self.objective.anchor_weight:
            anchors = self._anchors(self.anchor, batches)
        return [
            LossInputs(
                batch.weights,
                batch.plain,
                teacher=distribution,
                anchor=anchor,
                clips_N=batch.clips if any(row.clip is not None for row in batch.rows) else None,
                sampling_logprobs_M=_drawn(own, batch.labels.device) if own and self.objective.importance else None,
            )
            for batch, own, distribution, anchor in zip(batches, owned, distributions, anchors, strict=True)
        ]

    def _teacher_distributions(
        self, owned: Sequence[Sequence[TrainingRow]], batches: Sequence[MicroBatch]
    ) -> list[TeacherHidden | TopKLogprobs | None]:
        found: list[TeacherHidden | TopKLogprobs | None] = []
        with self.weights.showing(self.teacher):
            head = self.weights.head()
            for rows, batch in zip(owned, batches, strict=True):
                device = batch.labels.device
                distribution = _recorded(rows, device, head) if rows else None
                if rows and distribution is None:
                    asked = [replace(row, prompt_ids=row.teacher_ids) for row in rows]
                    shown = collate(asked, self.pad_token_id, device, packed=bool(batch.packed_lengths))
                    distribution = TeacherHidden(self.weights.score(shown), head)
                found.append(distribution)
        return found

    def _anchors(self, anchor: Kind, batches: Sequence[MicroBatch]) -> list[TeacherHidden | None]:
        with self.weights.showing(anchor):
            head = self.weights.head()
            return [
                TeacherHidden(self.weights.score(batch), head) if batch.num_loss_tokens else None for batch in batches
            ]


def _recorded(rows: Sequence[TrainingRow], device: torch.device, head: Head) -> TeacherHidden | TopKLogprobs | None:
    """Return the distributions that rollouts recorded: there if every one was written under the teacher's prompt."""
    recorded = [row.rollout for row in rows if row.rollout and row.rollout.prompt_token_ids == row.teacher_ids]
    if len(recorded) < len(rows):
        return None
    tops = [(rollout.top, row.num_skipped) for rollout, row in zip(recorded, rows, strict=True)]
    if all(top is not None for top, _ in tops):
        return TopKLogprobs(
            torch.cat([top.token_ids[skip:] for top, skip in tops if top is not None]).to(device),
            torch.cat([top.logprobs[skip:] for top, skip in tops if top is not None]).to(device),
        )
    hidden = [(rollout.hidden, row.num_skipped) for rollout, row in zip(recorded, rows, strict=True)]
    if any(kept is None for kept, _ in hidden):
        return None
    return TeacherHidden(torch.cat([kept[skip:] for kept, skip in hidden if kept is not None]).to(device), head)


def _drawn(rows: Sequence[TrainingRow], device: torch.device) -> torch.Tensor:
    """Return the log-probabilities the targets were drawn with; NaN where a token was not drawn: its ratio is 1.

    A demonstration was not drawn, nor was the template's own end of a text that stopped at another token, which may
    have more tokens than that.
    """
    found: list[float] = []
    for row in rows:
        known: dict[int, float] = {}
        if row.rollout is not None:
            drawn = zip(row.target_ids, row.rollout.token_ids, row.rollout.sampling_logprobs, strict=False)
            known = {place: logprob for place, (token, own, logprob) in enumerate(drawn) if token == own}
        found += [known.get(place, float("nan")) for place in range(row.num_skipped, len(row.target_ids))]
    return torch.tensor(found, dtype=torch.float32, device=device)
