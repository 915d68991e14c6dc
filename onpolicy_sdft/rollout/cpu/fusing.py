"""What a CPU does in one call between and in packed linears: float32 norms and rotations, gated units in oneDNN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from onpolicy_sdft.rollout.cpu import passes
from onpolicy_sdft.rollout.fused import Pass

_ACTIVATIONS: Mapping[Any, Pass] = {
    ("swish", ""): F.silu,
    ("gelu", "tanh"): partial(F.gelu, approximate="tanh"),
    ("gelu", "none"): F.gelu,
}


@dataclass(frozen=True, slots=True)
class Packed:
    """A linear in oneDNN's layout."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Multiply, as ``nn.Linear`` does."""
        return self.after(x, "none", "")

    def after(self, x: torch.Tensor, activation: str, algorithm: str) -> torch.Tensor:
        """Multiply and apply an activation of oneDNN's."""
        # The operation that Inductor compiles linears to. F.linear goes to MKL in float32, at half the speed on CPUs
        # whose AVX-512 MKL does not use.
        same = x.to(self.weight.dtype)  # adapters hand on float32; not every CPU multiplies that by bfloat16
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(same, self.weight, self.bias, activation, [], algorithm)
        return y.to(x.dtype)

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Multiply, then number by number with another result."""
        same = [each.to(self.weight.dtype) for each in (x, other)]
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(*same, self.weight, self.bias, "mul")
        return y.to(x.dtype)


@dataclass(frozen=True)
class CpuPasses:
    """See :class:`~onpolicy_sdft.rollout.fused.Passes`.

    Args:
        linears: Of the model, packed, by the module each stands for.
        dtype: Of their numbers.
    """

    linears: Mapping[nn.Module, Packed]
    dtype: torch.dtype

    @property
    def activations(self) -> Mapping[Any, Pass]:
        """Those of oneDNN, by name and algorithm."""
        return _ACTIVATIONS

    def norms(self, weight: torch.Tensor, epsilon: float) -> list[Pass]:
        """Return norms by the weight and by 1 + the weight."""
        if weight.dtype != torch.float32:
            return []
        kept = weight.detach().clone()  # numpy pins the memory it looks at, and gathered weights are given back

        def norm(offset: float) -> Pass:
            return lambda x: passes.rms_norm(x, kept, offset, epsilon)

        return [norm(0.0), norm(1.0)]

    def unit(self, gate: nn.Module, up: nn.Module, down: nn.Module, activation: Any) -> Pass | None:
        """Return a gated unit whose activation and product the linears do."""
        if not all(each in self.linears for each in (gate, up, down)):
            return None
        gate_by, up_by, down_by = self.linears[gate], self.linears[up], self.linears[down]
        return lambda x: down_by(up_by.times(x, gate_by.after(x, *activation)))

    def rotate(self) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """Return the rotation in float32."""
        return passes.rotate if self.dtype == torch.float32 else None
