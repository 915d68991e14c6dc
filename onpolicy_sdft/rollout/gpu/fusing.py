"""What a GPU does in one kernel between linears: norms, rotations, gated units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from onpolicy_sdft.rollout.gpu import passes

if TYPE_CHECKING:
    from onpolicy_sdft.rollout.copies import Copies
    from onpolicy_sdft.rollout.fused import Pass

_ACTIVATIONS: Mapping[Any, Pass] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "gelu": F.gelu}


@dataclass(frozen=True)
class GpuPasses:
    """See :class:`~onpolicy_sdft.rollout.fused.Passes`.

    Args:
        copies: The linears to decode from.
        dtype: Of the numbers between them.
    """

    copies: Copies
    dtype: torch.dtype

    @property
    def activations(self) -> Mapping[Any, Pass]:
        """Those of the kernel."""
        return _ACTIVATIONS

    def norms(self, weight: torch.Tensor, epsilon: float) -> list[Pass]:
        """Return norms by the weight, before rounding or after, and by 1 + the weight."""
        if weight.dtype != self.dtype:
            return []

        def norm(offset: float, round_first: bool) -> Pass:
            return lambda x: passes.rms_norm(x, weight, offset, epsilon, round_first=round_first)

        return [norm(0.0, True), norm(0.0, False), norm(1.0, False)]

    def unit(self, gate: nn.Module, up: nn.Module, down: nn.Module, activation: Any) -> Pass | None:
        """Return a gated unit of one product for gate and up where they are joined, else of two."""
        joined = self.copies.joined((gate, up))

        def unit(x: torch.Tensor) -> torch.Tensor:
            first, second = (gate(x), up(x)) if joined is None else joined(x).chunk(2, dim=-1)
            y: torch.Tensor = down(passes.gated(first, second, activation))
            return y

        return unit

    def rotate(self) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """Return the rotation."""
        return passes.rotate
