"""What an objective is told besides hidden states and labels: the teacher's distribution, and how each token counts.

Shape letters: N loss tokens, M loss tokens that are learned by the objective itself (the others by nll), D hidden
size, V vocabulary, K kept alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class HeadLike(Protocol):
    """The output layer, as an objective sees it."""

    @property
    def weight_VD(self) -> torch.Tensor:
        """Weight, [V, D]."""
        ...

    @property
    def bias_V(self) -> torch.Tensor | None:
        """Bias, [V], if any."""
        ...

    @property
    def softcap(self) -> float | None:
        """Bound of the logits, if they are bent by one."""
        ...

    def finish(self, raw: torch.Tensor) -> torch.Tensor:
        """Turn what the linear layer gives into logits, float32 or wider: [N, V] -> [N, V]."""
        ...

    def pull_back(self, logits: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Turn a gradient of the logits into one of what the linear layer gave: [N, V] -> [N, V]."""
        ...


@dataclass(frozen=True, slots=True)
class TeacherHidden:
    """A distribution over the whole vocabulary, kept as the hidden states it follows from."""

    hidden_MD: torch.Tensor
    head: HeadLike


@dataclass(frozen=True, slots=True)
class TopKLogprobs:
    """The likeliest tokens of a distribution with their log-probabilities in nats; what they leave is the tail's."""

    token_ids_MK: torch.Tensor  # int64
    logprobs_MK: torch.Tensor


@dataclass(frozen=True, slots=True)
class LossInputs:
    """How the loss tokens of a micro-batch are learned."""

    weights_N: torch.Tensor  # float32, each token's weight in the sum
    plain_N: torch.Tensor  # bool: learned by nll whatever the objective is; the other M tokens are its own
    teacher: TeacherHidden | TopKLogprobs | None = None  # over the M tokens, in order
    anchor: TeacherHidden | None = None  # over all N tokens
    sampling_logprobs_M: torch.Tensor | None = None  # of the labels when they were drawn, in nats; nan: not drawn
    clips_N: torch.Tensor | None = None  # float32: largest nll of a token in nats, inf: any; None: any
