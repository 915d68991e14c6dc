"""The objectives: loss and gradient of a micro-batch's loss tokens, a chunk of them at a time.

Both are computed in closed form in the forward pass, so no [tokens, vocabulary] tensor outlives its chunk and
nothing is computed twice; the backward pass only scales what is there.

Shape letters: N loss tokens, M of them learned by the objective itself, C tokens of a chunk, D hidden size,
V vocabulary, K kept tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import torch

from onpolicy_sdft.config.schema import ObjectiveName
from onpolicy_sdft.objectives.divergence import (
    DIVERGENCES,
    blended,
    bucket_of,
    in_buckets,
    out_of_buckets,
    with_tail,
)
from onpolicy_sdft.objectives.inputs import HeadLike, LossInputs, TeacherHidden, TopKLogprobs
from onpolicy_sdft.shapes import pad_rows

Support = Literal["full", "teacher", "student"]

_CPU_CHUNK = 128  # larger ones are no faster there
_GPU_BYTES = 1 << 29  # of a chunk's [C, V] tensors: few kernels, and little beside a micro-batch's activations
_BYTES_A_LOGIT = 16  # logits and gradients, wide and narrow; a teacher's as many again, one chunk at a time

#: Losses and the gradient of their sum by logits, of a chunk.
_Losses = tuple[torch.Tensor, torch.Tensor]


class LossPart(IntEnum):
    """What is summed over the loss tokens beside the loss; losses as weighted in it."""

    OWN = 0  # the objective's own losses
    PLAIN = 1  # nll of plain tokens
    ANCHOR = 2  # the anchor's divergences
    CLIPPED = 3  # how many losses were clipped
    IMPORTANCE = 4  # importance weights
    CAPPED = 5  # how many of them were capped
    OWN_TOKENS = 6  # how many tokens the objective itself learned: all but the plain ones
    STAND_IN_CLIPPED = 7  # how many tokens of demonstrations that stand in were clipped


@dataclass(frozen=True, slots=True)
class Summed:
    """Sums over the loss tokens of a micro-batch."""

    loss_sum: torch.Tensor  # [] nats, float32 or wider; carries the gradient
    figures: torch.Tensor  # [len(LossPart)] float64, no gradient


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss per token: ``sum_n w_n d_n rho_n min(clip, loss_n) + anchor_weight sum_n w_n anchor_n``, temperature 1.

    * ``nll``: ``-log s(y)`` of the label y under the student's distribution s.
    * ``forward_kl``, ``reverse_kl``, ``jsd``: between the teacher's distribution t and s (see ``divergence.py``).
    * ``sampled_reverse_kl``: the value is ``log s(y) - log t(y)``, an estimate of ``KL(s || t)`` where y was drawn
      from s; the gradient is the score function's, ``stopgrad(log s(y) - log t(y)) grad log s(y)``. Differentiating
      the estimate itself has expectation 0.

    A token whose loss is above ``clip`` counts as ``clip`` and gives no gradient. ``rho_n = min(importance_cap,
    s(y) / b(y))`` with b the distribution y was drawn from, no gradient through it; 1 where ``importance`` is off.
    ``anchor_n`` is ``KL(s || anchor)``.

    With ``blend`` b the divergences compare s with the normalised ``t^(1 - b) s^b`` instead of t, no gradient through
    it (over the buckets, where ``support`` makes some). ``d_n = min(1, |log t(y) - log s(y)| / disagreement)``, no
    gradient through it; 1 where that is unset. It is not normalised: what a token weighs must not depend on which
    others share its micro-batch.

    Sources: DemoPSD, arXiv:2607.02502 (the product as a target; there its weight is adapted to each token);
    arXiv:2601.20802 (``log t(y) - log s(y)`` as a token's advantage), of which ``d_n`` is the capped size.

    Args:
        name: Which loss.
        beta: Of ``jsd``, in (0, 1).
        support: ``full`` vocabulary, or the ``num_kept`` likeliest tokens of teacher or student and one tail bucket.
        num_kept: K.
        clip: Largest loss of a token in nats; None: none.
        blend: b, at least 0 and below 1.
        disagreement: Nats from which on a token counts whole; None: all do.
        anchor_weight: Weight of the anchor's divergence.
        importance: Correct for labels that were not drawn from s.
        importance_cap: Largest weight of that correction.
        chunk_tokens: C; None: see :func:`chunk_size`. Results depend on it by rounding only.
    """

    name: ObjectiveName = "nll"
    beta: float = 0.5
    support: Support = "full"
    num_kept: int = 0
    clip: float | None = None
    blend: float = 0.0
    disagreement: float | None = None
    anchor_weight: float = 0.0
    importance: bool = False
    importance_cap: float = 2.0
    chunk_tokens: int | None = None

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's distribution must be given."""
        return self.name != "nll"

    def __call__(self, hidden_ND: torch.Tensor, head: HeadLike, labels_N: torch.Tensor, signals: LossInputs) -> Summed:
        """Sum the loss over the loss tokens.

        Args:
            hidden_ND: Final hidden states that predict the labels.
            head: The output layer.
            labels_N: Target tokens, int64.
            signals: Weights and distributions.

        Returns:
            Sums; for N = 0 a zero that still reaches ``hidden_ND`` and the head, so that every rank runs the same
            backward.
        """
        if labels_N.numel() == 0:
            zero = hidden_ND.sum() * 0.0 + head.weight_VD.sum() * 0.0
            zero = zero if head.bias_V is None else zero + head.bias_V.sum() * 0.0
            return Summed(zero, torch.zeros(len(LossPart), dtype=torch.float64, device=hidden_ND.device))
        work = _Work(self, head, labels_N, signals, with_gradient=torch.is_grad_enabled())
        loss_sum, figures = _ClosedForm.apply(hidden_ND, head.weight_VD, head.bias_V, work)  # type: ignore[no-untyped-call]
        return Summed(loss_sum, figures)

    def losses(
        self,
        logprobs_CV: torch.Tensor,
        labels_C: torch.Tensor,
        teacher: TeacherHidden | TopKLogprobs | None,
        read: _Reader,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the own loss of a chunk's tokens, its gradient by logits and, if asked for, ``d`` of each token."""
        if self.name == "nll" or teacher is None:
            return *nll(logprobs_CV, labels_C), None
        if self.name == "sampled_reverse_kl" and isinstance(teacher, TeacherHidden):
            nll_C, gradient_CV = nll(logprobs_CV, labels_C)
            value_C = -nll_C - read(teacher).gather(-1, labels_C[:, None])[:, 0]
            return value_C, gradient_CV.mul_(-value_C[:, None]), None
        teacher_CB, student_CB, kept_CK = self._in_buckets(logprobs_CV, teacher, read)
        weights_C = None
        if self.disagreement is not None:
            at_C1 = (labels_C if kept_CK is None else bucket_of(labels_C, kept_CK))[:, None]
            apart_C = (teacher_CB.gather(-1, at_C1) - student_CB.gather(-1, at_C1))[:, 0].abs()
            weights_C = (apart_C / self.disagreement).clamp_max(1.0)
        if self.blend:
            teacher_CB = blended(teacher_CB, student_CB, self.blend)
        value_C, gradient_CB = DIVERGENCES[self.name](teacher_CB, student_CB, self.beta)
        if kept_CK is None:
            return value_C, gradient_CB, weights_C
        return value_C, out_of_buckets(gradient_CB, student_CB[:, -1:], logprobs_CV, kept_CK), weights_C

    def _in_buckets(
        self, logprobs_CV: torch.Tensor, teacher: TeacherHidden | TopKLogprobs, read: _Reader
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return both distributions over the buckets, and the kept tokens; None: all, each its own bucket."""
        if isinstance(teacher, TopKLogprobs):
            kept_CK, recorded_CK = teacher.token_ids_MK, teacher.logprobs_MK.to(logprobs_CV)
            if kept_CK.shape[-1] < logprobs_CV.shape[-1]:
                return with_tail(recorded_CK), in_buckets(logprobs_CV, kept_CK), kept_CK
            return torch.empty_like(logprobs_CV).scatter_(-1, kept_CK, recorded_CK), logprobs_CV, None  # no tail left
        teacher_CV = read(teacher)
        if self.support == "full" or self.num_kept >= logprobs_CV.shape[-1]:
            return teacher_CV, logprobs_CV, None
        kept_CK = (teacher_CV if self.support == "teacher" else logprobs_CV).topk(self.num_kept, -1).indices
        return in_buckets(teacher_CV, kept_CK), in_buckets(logprobs_CV, kept_CK), kept_CK


def chunk_size(vocab_size: int, device_type: str) -> int:
    """Return how many loss tokens' logits are alive at once: as many as some memory holds on a GPU, few on a CPU."""
    if device_type == "cpu":
        return _CPU_CHUNK
    return max(1, _GPU_BYTES // (_BYTES_A_LOGIT * vocab_size))


def nll(logprobs_CV: torch.Tensor, labels_C: torch.Tensor) -> _Losses:
    """Return ``-log s(y)`` and its gradient ``s - onehot(y)``."""
    value_C = -logprobs_CV.gather(-1, labels_C[:, None])[:, 0]
    gradient_CV = logprobs_CV.exp()
    gradient_CV.scatter_add_(-1, labels_C[:, None], gradient_CV.new_full((len(labels_C), 1), -1.0))
    return value_C, gradient_CV


#: Gives the log-probabilities [C, V] of a distribution of C tokens.
_Reader = Callable[[TeacherHidden], torch.Tensor]


class _ClosedForm(torch.autograd.Function):
    """Computes loss and gradients at once; backward scales the gradients."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: Any, work: _Work) -> Any:
        wanted = [flag and work.with_gradient for flag in ctx.needs_input_grad[:3]]
        loss_sum, figures, gradients = work.run(hidden_ND, wanted)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(figures)
        return loss_sum, figures

    @staticmethod
    def backward(ctx: Any, *by_output: Any) -> Any:
        return (*(None if g is None else g * by_output[0].to(g.dtype) for g in ctx.saved_tensors), None)


@dataclass
class _Work:
    """The chunks of one micro-batch."""

    objective: Objective
    head: HeadLike
    labels_N: torch.Tensor
    signals: LossInputs
    with_gradient: bool

    def run(self, hidden_ND: torch.Tensor, wanted: list[bool]) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
        """Return the loss sum, the figures and the gradients by hidden states, head weight and bias."""
        device = hidden_ND.device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else hidden_ND.dtype
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        loss_sum = torch.zeros((), dtype=wide, device=device)
        figures = torch.zeros(len(LossPart), dtype=torch.float64, device=device)
        narrow: dict[int, torch.Tensor] = {}  # the heads in the dtype of the products, each cast once

        def weight_of(head: HeadLike) -> torch.Tensor:
            weight = head.weight_VD
            return narrow.setdefault(id(weight), weight if weight.dtype == dtype else weight.to(dtype))

        def logits_of(hidden_CD: torch.Tensor, head: HeadLike) -> torch.Tensor:
            bias = None if head.bias_V is None else head.bias_V.to(dtype)
            raw = torch.nn.functional.linear(pad_rows(hidden_CD.to(dtype)), weight_of(head), bias)
            return head.finish(raw[: len(hidden_CD)])

        def read(distribution: TeacherHidden) -> torch.Tensor:
            return _log_softmax(logits_of(distribution.hidden_MD, distribution.head)).to(wide)

        by_hidden = torch.empty_like(hidden_ND) if wanted[0] else None
        by_weight = torch.zeros_like(self.head.weight_VD, dtype=wide) if wanted[1] else None
        by_bias = torch.zeros_like(self.head.bias_V, dtype=wide) if wanted[2] and self.head.bias_V is not None else None
        with torch.autocast(device.type, enabled=False):
            for tokens, own, is_plain in self._chunks():
                hidden_CD = hidden_ND[tokens].to(dtype)
                logits_CV = logits_of(hidden_CD, self.head)
                kept_CV = logits_CV.clone() if any(wanted) and self.head.softcap is not None else logits_CV
                loss, gradient_CV = self._chunk(_log_softmax(logits_CV), tokens, own, is_plain, read, figures)
                loss_sum += loss
                if not any(wanted):
                    continue
                raw_CV = pad_rows(self.head.pull_back(kept_CV, gradient_CV).to(dtype))
                if by_hidden is not None:
                    by_hidden[tokens] = (raw_CV @ weight_of(self.head))[: len(tokens)].to(by_hidden.dtype)
                if by_weight is not None:
                    by_weight += raw_CV.T @ pad_rows(hidden_CD)
                if by_bias is not None:
                    by_bias += raw_CV.sum(0)
        if by_weight is not None:
            by_weight = by_weight.to(self.head.weight_VD.dtype)
        return loss_sum, figures, [by_hidden, by_weight, by_bias]

    def _chunks(self) -> Iterator[tuple[torch.Tensor, slice, bool]]:
        """Yield the positions of a chunk's tokens among N, among M, and whether they are plain."""
        size = self.objective.chunk_tokens or chunk_size(len(self.head.weight_VD), self.labels_N.device.type)
        plain_N = self.signals.plain_N
        own = (~plain_N).nonzero()[:, 0]
        for start in range(0, len(own), size):
            yield own[start : start + size], slice(start, start + size), False
        for tokens in plain_N.nonzero()[:, 0].split(size):
            if len(tokens):
                yield tokens, slice(0, 0), True

    def _chunk(
        self,
        logprobs_CV: torch.Tensor,
        tokens: torch.Tensor,
        own: slice,
        is_plain: bool,
        read: _Reader,
        figures: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of a chunk and its gradient by logits; add to the figures."""
        objective, signals, labels_C = self.objective, self.signals, self.labels_N[tokens]
        weights_C = signals.weights_N[tokens].to(logprobs_CV.dtype)
        if signals.clips_N is not None:  # of demonstrations that stand in, which are learned by nll
            clips_C = signals.clips_N[tokens].to(logprobs_CV.dtype)
            too_surprising_C = -logprobs_CV.gather(-1, labels_C[:, None])[:, 0] > clips_C
            figures[LossPart.STAND_IN_CLIPPED] += too_surprising_C.sum()
        if is_plain:
            loss_C, gradient_CV = nll(logprobs_CV, labels_C)
        else:
            given = _part(signals.teacher, own)
            loss_C, gradient_CV, apart_C = objective.losses(logprobs_CV, labels_C, given, read)
            weights_C = weights_C if apart_C is None else weights_C * apart_C
        scale_C = weights_C
        if signals.clips_N is not None:
            loss_C, scale_C = torch.minimum(loss_C, clips_C), scale_C * ~too_surprising_C
        if not is_plain and objective.clip is not None:
            clipped_C = loss_C > objective.clip
            loss_C, scale_C = loss_C.clamp_max(objective.clip), scale_C * ~clipped_C
            figures[LossPart.CLIPPED] += clipped_C.sum()
        if not is_plain and objective.importance and signals.sampling_logprobs_M is not None:
            drawn_C = signals.sampling_logprobs_M[own].to(logprobs_CV.dtype)
            ratio_C = (logprobs_CV.gather(-1, labels_C[:, None])[:, 0] - drawn_C).exp().nan_to_num(1.0)
            rho_C = ratio_C.clamp_max(objective.importance_cap)
            figures[LossPart.IMPORTANCE] += rho_C.sum()
            figures[LossPart.CAPPED] += (ratio_C > objective.importance_cap).sum()
            weights_C, scale_C = weights_C * rho_C, scale_C * rho_C
        loss = (weights_C * loss_C).sum()
        figures[LossPart.PLAIN if is_plain else LossPart.OWN] += loss
        figures[LossPart.OWN_TOKENS] += 0 if is_plain else len(tokens)
        gradient_CV.mul_(scale_C[:, None])
        if objective.anchor_weight and signals.anchor is not None:
            anchor_CV = read(TeacherHidden(signals.anchor.hidden_MD[tokens], signals.anchor.head))
            anchor_C, anchor_gradient_CV = DIVERGENCES["reverse_kl"](anchor_CV, logprobs_CV, objective.beta)
            weights_C = signals.weights_N[tokens].to(logprobs_CV.dtype) * objective.anchor_weight
            anchored = (weights_C * anchor_C).sum()
            figures[LossPart.ANCHOR] += anchored
            loss = loss + anchored
            gradient_CV.addcmul_(anchor_gradient_CV, weights_C[:, None])
        return loss, gradient_CV


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Overwrite logits with log-probabilities: one tensor of a chunk less than torch's."""
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def _part(distribution: TeacherHidden | TopKLogprobs | None, rows: slice) -> TeacherHidden | TopKLogprobs | None:
    if distribution is None:
        return None
    if isinstance(distribution, TeacherHidden):
        return TeacherHidden(distribution.hidden_MD[rows], distribution.head)
    return TopKLogprobs(distribution.token_ids_MK[rows], distribution.logprobs_MK[rows])
