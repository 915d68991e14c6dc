"""Norms, gated units and rotary positions done in one pass each while a CPU decodes from packed weights.

Between its linears a decoder layer of transformers calls some forty small operations; at thirty rows they take a
quarter of a decode forward. Each replacement is compared with what it stands for on numbers made here before it is
used, and whatever differs keeps its own operations: no model is assumed to be of a kind because of its name.

Shape letters: N tokens, H heads, D head size.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from onpolicy_sdft.rollout import cpu_passes

_ROTATION = "apply_rotary_pos_emb"  # what modeling files of transformers call it
_ACTIVATIONS = (("swish", ""), ("gelu", "tanh"), ("gelu", "none"))  # oneDNN's, with its algorithm
#: Largest difference from what is replaced, in largest numbers of that: rounding, never another formula.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

Variant = Any  # which of the candidates a module is; None: none


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
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, [], algorithm)
        return y

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Multiply, then number by number with another result."""
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")
        return y


def replace_on(owner: Any, name: str, value: Any, stack: contextlib.ExitStack) -> None:
    """Give an object an attribute of its own, over its class's, until the stack closes."""
    if name in owner.__dict__:
        stack.callback(owner.__dict__.__setitem__, name, owner.__dict__[name])
    else:
        stack.callback(owner.__dict__.pop, name)
    owner.__dict__[name] = value


@torch.no_grad()
def fuse(
    model: nn.Module, packed: Mapping[nn.Module, Packed], known: dict[Any, Variant], stack: contextlib.ExitStack
) -> None:
    """Replace what can be replaced until the stack closes. Call it with packed linears in place.

    Args:
        model: In eval mode, on a CPU.
        packed: Its linears, or the adapters around them.
        known: Which candidate stands for what, filled at the first call: they are compared once.
        stack: Puts everything back.
    """
    for module in model.modules():
        for find in (_norm_of, _gated_unit_of):
            if forward := find(module, packed, known):
                replace_on(module, "forward", forward, stack)
    for modeling in {sys.modules.get(type(module).__module__) for module in model.modules()}:
        if hasattr(modeling, _ROTATION) and (rotation := _rotation_of(modeling, known)):
            replace_on(modeling, _ROTATION, rotation, stack)


def _norm_of(
    module: nn.Module, packed: Mapping[nn.Module, Packed], known: dict[Any, Variant]
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return a root-mean-square norm's forward in one pass; its variants add 0 or 1 to the weight."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, torch.Tensor) or not isinstance(epsilon, float) or weight.dtype != torch.float32:
        return None
    if weight.dim() != 1 or isinstance(module, nn.LayerNorm):
        return None
    kept = weight.detach().clone()  # numpy pins the memory it looks at, and gathered weights are given back
    own: Callable[[torch.Tensor], torch.Tensor] = module.forward

    def norm(offset: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: cpu_passes.rms_norm(x, kept, offset, epsilon) if x.dtype == torch.float32 else own(x)

    offset = _choose(module, (0.0, 1.0), norm, _numbers(kept, 3), known)
    return None if offset is None else norm(offset)


def _gated_unit_of(
    module: nn.Module, packed: Mapping[nn.Module, Packed], known: dict[Any, Variant]
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return the forward of a gated unit, ``down(act(gate(x)) * up(x))``, whose act and product its linears do."""
    parts = [packed.get(getattr(module, f"{name}_proj", None)) for name in ("gate", "up", "down")]  # type: ignore[arg-type]
    if None in parts:
        return None
    gate, up, down = (part for part in parts if part is not None)
    linear: Any = getattr(module, "gate_proj")  # noqa: B009  # mypy knows modules only
    x = _numbers(torch.empty(linear.in_features, dtype=gate.weight.dtype), 3)

    def unit(activation: tuple[str, str]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: down(up.times(x, gate.after(x, *activation)))

    chosen = _choose(module, _ACTIVATIONS, unit, x, known)
    return None if chosen is None else unit(chosen)


def _choose(
    module: nn.Module,
    variants: tuple[Any, ...],
    make: Callable[[Any], Callable[[torch.Tensor], torch.Tensor]],
    x: torch.Tensor,
    known: dict[Any, Variant],
) -> Variant:
    """Return the first variant that gives what the module gives."""
    if module not in known:
        try:
            own: torch.Tensor = module.forward(x)
            known[module] = next((each for each in variants if _is_close(make(each)(x), own)), None)
        except (TypeError, ValueError, RuntimeError):  # it takes other arguments
            known[module] = None
    return known[module]


def _rotation_of(modeling: Any, known: dict[Any, Variant]) -> Callable[..., Any] | None:
    """Return a modeling file's rotation of queries and keys in one pass; what it is not meant for goes to its own."""
    own = getattr(modeling, _ROTATION)

    def rotation(q: Any, k: Any, cos: Any, sin: Any, *others: Any, **options: Any) -> Any:
        if others or options or not (_can_rotate(q, cos, sin) and _can_rotate(k, cos, sin)):
            return own(q, k, cos, sin, *others, **options)
        return cpu_passes.rotate(q, cos, sin), cpu_passes.rotate(k, cos, sin)

    if own not in known:
        q, k = (_numbers(torch.empty(1, heads, 5, 8), 1) for heads in (4, 2))
        cos, sin = _numbers(torch.empty(1, 5, 8), 1), _numbers(torch.empty(1, 5, 8), 1).flip(-1)
        try:
            pairs = zip(rotation(q, k, cos, sin), own(q, k, cos, sin), strict=True)
            known[own] = all(_is_close(mine, theirs) for mine, theirs in pairs)
        except (TypeError, ValueError, RuntimeError):  # it takes other arguments
            known[own] = False
    return rotation if known[own] else None


def _can_rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """Whether [1, H, N, D] and [1, N, D] of float32 are given, without gradients."""
    return (
        x.dim() == 4
        and cos.dim() == 3
        and cos.shape == sin.shape == (1, x.shape[2], x.shape[3])
        and len(x) == 1
        and {x.dtype, cos.dtype, sin.dtype} == {torch.float32}
        and x.device.type == cos.device.type == "cpu"
        and not torch.is_grad_enabled()
    )


def _numbers(like: torch.Tensor, rows: int) -> torch.Tensor:
    """Make numbers of both signs and unlike sizes, the same every time, without touching random state."""
    shape = like.shape if like.dim() > 1 else (1, rows, *like.shape)
    count = torch.Size(shape).numel()
    return (3 * torch.sin(1.7 * torch.arange(count, dtype=torch.float32))).view(shape).to(like.dtype)


def _is_close(mine: torch.Tensor, own: torch.Tensor) -> bool:
    if mine.shape != own.shape or mine.dtype != own.dtype:
        return False
    largest = float(own.abs().max())
    return bool((mine - own).abs().max() <= _TOLERANCE[own.dtype] * largest)
