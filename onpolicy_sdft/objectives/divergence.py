"""Divergences between a teacher's and a student's distribution, each with its gradient in closed form.

Everything is a function of log-probabilities over buckets: the tokens of the vocabulary, or some kept tokens and
one tail bucket for all others. Gradients are with respect to the student's bucket logits, so they sum to 0.

Shape letters: C tokens of a chunk, B buckets, V vocabulary, K kept tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

#: ``(teacher_CB, student_CB, beta) -> (divergence_C, gradient_CB)`` of log-probabilities in nats.
Divergence = Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]

#: A kept distribution's tail is never taken for less than this: what rounding leaves of 1 - sum would have no
#: logarithm.
_SMALLEST_TAIL = 1e-7


def forward_kl(teacher_CB: torch.Tensor, student_CB: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``KL(teacher || student) = sum_b t_b (log t_b - log s_b)`` and its gradient ``s - t``."""
    t_CB = teacher_CB.exp()
    value_C = (t_CB * (teacher_CB - student_CB)).sum(-1)
    return value_C, student_CB.exp().sub_(t_CB)


def reverse_kl(teacher_CB: torch.Tensor, student_CB: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``KL(student || teacher)`` and its gradient ``s (log s - log t - KL)``."""
    s_CB, distance_CB = student_CB.exp(), student_CB - teacher_CB
    value_C = (s_CB * distance_CB).sum(-1)
    return value_C, s_CB.mul_(distance_CB.sub_(value_C[:, None]))


def jsd(teacher_CB: torch.Tensor, student_CB: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``beta KL(t || m) + (1 - beta) KL(s || m)`` with ``m = beta t + (1 - beta) s``, and its gradient.

    The gradient is ``(1 - beta) s (r - sum(s r))`` with ``r = log s - log m``.
    Source: the generalised Jensen-Shannon divergence of Agarwal et al. (2024), arXiv:2306.13649.
    """
    mixture_CB = torch.logaddexp(teacher_CB + math.log(beta), student_CB + math.log(1 - beta))
    s_CB, r_CB = student_CB.exp(), student_CB - mixture_CB
    student_part_C = (s_CB * r_CB).sum(-1)
    teacher_part_C = (teacher_CB.exp() * (teacher_CB - mixture_CB)).sum(-1)
    gradient_CB = s_CB.mul_(r_CB.sub_(student_part_C[:, None])).mul_(1 - beta)
    return beta * teacher_part_C + (1 - beta) * student_part_C, gradient_CB


#: By their names in ``config/schema.py``.
DIVERGENCES: dict[str, Divergence] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd}


def blended(teacher_CB: torch.Tensor, student_CB: torch.Tensor, weight: float) -> torch.Tensor:
    """Return the log-probabilities of the normalised ``t^(1 - weight) s^weight``, for a weight below 1."""
    return torch.log_softmax((1 - weight) * teacher_CB + weight * student_CB, -1)


def bucket_of(labels_C: torch.Tensor, kept_CK: torch.Tensor) -> torch.Tensor:
    """Return the bucket each label is in, [C]: its place among the kept tokens, or K, the tail's."""
    is_label_CK = kept_CK == labels_C[:, None]
    return torch.where(is_label_CK.any(-1), is_label_CK.to(torch.int64).argmax(-1), kept_CK.shape[-1])


def in_buckets(logprobs_CV: torch.Tensor, kept_CK: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of kept tokens and, last, of all other tokens together: [C, K + 1]."""
    kept = logprobs_CV.gather(-1, kept_CK)
    tail = logprobs_CV.scatter(-1, kept_CK, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([kept, tail], -1)


def with_tail(logprobs_CK: torch.Tensor) -> torch.Tensor:
    """Append the tail that kept log-probabilities leave: [C, K] -> [C, K + 1]."""
    mass = logprobs_CK.exp().sum(-1, keepdim=True)
    return torch.cat([logprobs_CK, (1 - mass).clamp_min(_SMALLEST_TAIL).log()], -1)


def out_of_buckets(
    gradient_CB: torch.Tensor, tail_C1: torch.Tensor, logprobs_CV: torch.Tensor, kept_CK: torch.Tensor
) -> torch.Tensor:
    """Turn a gradient of bucket logits into one of the vocabulary's: the tail's is shared out by probability."""
    gradient_CV = (logprobs_CV - tail_C1).exp_().mul_(gradient_CB[:, -1:])
    return gradient_CV.scatter_(-1, kept_CK, gradient_CB[:, :-1])
