"""Negative log-likelihood of the target tokens, without a [tokens, vocabulary] matrix in float32.

Shape letters: N loss tokens, D hidden size, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from onpolicy_sdft.errors import ConfigError


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
    def is_linear(self) -> bool:
        """Whether logits are a plain linear map of the hidden state."""
        ...

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Logits, float32 or wider: [N, D] -> [N, V]."""
        ...


def nll(
    hidden_ND: torch.Tensor,
    head: HeadLike,
    labels_N: torch.Tensor,
    law: None = None,
    *,
    chunk_tokens: int = 1024,
    kernel: Literal["chunks", "torch"] = "chunks",
) -> torch.Tensor:
    """Sum of ``-log p(label)`` over the loss tokens, at temperature 1.

    ``chunks`` keeps the logits of ``chunk_tokens`` tokens alive and computes them again in the backward pass.
    ``torch`` is ``torch.nn.functional.linear_cross_entropy``, whose sum comes in the dtype of ``hidden_ND``.

    Args:
        hidden_ND: Final hidden states that predict the labels, [N, D].
        head: The output layer.
        labels_N: Target tokens, [N] int64.
        law: Unused: no teacher distribution is needed.
        chunk_tokens: C.
        kernel: How it is computed.

    Returns:
        [] float32 (float64 for float64 input). For N = 0 a zero that still reaches ``hidden_ND`` and the head,
        so that every rank runs the same backward.

    Raises:
        ConfigError: If ``kernel="torch"`` and the head is not linear, or torch has no such function.
    """
    if labels_N.numel() == 0:
        return hidden_ND.sum() * 0.0 + head.weight_VD.sum() * 0.0
    if kernel == "torch":
        return _torch_kernel(hidden_ND, head, labels_N, chunk_tokens)
    total = hidden_ND.new_zeros((), dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
    chunks = list(zip(torch.split(hidden_ND, chunk_tokens), torch.split(labels_N, chunk_tokens), strict=True))
    for hidden_CD, labels_C in chunks:
        if len(chunks) == 1:  # nothing to save by computing the only chunk twice
            return _chunk(hidden_CD, head, labels_C)
        total = total + checkpoint(_chunk, hidden_CD, head, labels_C, use_reentrant=False)
    return total


def _chunk(hidden_CD: torch.Tensor, head: HeadLike, labels_C: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head.logits(hidden_CD), labels_C, reduction="sum")


def _torch_kernel(hidden_ND: torch.Tensor, head: HeadLike, labels_N: torch.Tensor, chunk_tokens: int) -> torch.Tensor:
    if not hasattr(F, "linear_cross_entropy"):
        raise ConfigError(
            f"objective.kernel='torch' needs torch.nn.functional.linear_cross_entropy; torch {torch.__version__} "
            "has none. Way out: --objective.kernel chunks."
        )
    if not head.is_linear:
        raise ConfigError(
            "objective.kernel='torch' cannot serve a head with a logit scale or soft cap. "
            "Way out: --objective.kernel chunks."
        )
    return F.linear_cross_entropy(
        hidden_ND,
        head.weight_VD.to(hidden_ND.dtype),
        labels_N,
        linear_bias=head.bias_V,
        reduction="sum",
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk_tokens),
    )
