"""Norms, gated units and rotary positions done in few calls while a CPU decodes from packed weights.

Between its linears a decoder layer of transformers calls some forty small operations, whose calls cost more than their
work at the few rows of a decode forward. What is put in their place is compared with the model's own at every opening,
on numbers from small to very large, and whatever differs, returns nothing to compare, or has hooks keeps its own
operations: no module is taken for what its name says. Norms and positions in float32, units in bfloat16 too.

Shape letters: N tokens, H heads, D head size.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_ROTATION = "apply_rotary_pos_emb"  # what modeling files of transformers call it
#: oneDNN's name and algorithm of an activation, and the same in torch.
_ACTIVATIONS: dict[tuple[str, str], Callable[[torch.Tensor], torch.Tensor]] = {
    ("swish", ""): F.silu,
    ("gelu", "tanh"): partial(F.gelu, approximate="tanh"),
    ("gelu", "none"): F.gelu,
}
#: Largest difference from what is replaced, in the largest number of its row: rounding, never another formula.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_SCALES = (1e-3, 1.0, 1e2)  # an epsilon shows at the small end, a clamp at the large one

Forward = Callable[..., torch.Tensor]


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
def fuse(model: nn.Module, packed: Mapping[nn.Module, Packed], stack: contextlib.ExitStack) -> str:
    """Replace what can be replaced until the stack closes. Call it with packed linears in place.

    Args:
        model: In eval mode, on a CPU.
        packed: Its linears, or the adapters around them.
        stack: Puts everything back.

    Returns:
        What was replaced, for people.
    """
    counts = {"norms": 0, "gated units": 0, "rotary positions": 0}
    for module in model.modules():
        for name, find in (("norms", _norm_of), ("gated units", _gated_unit_of)):
            if forward := find(module, packed):
                replace_on(module, "forward", forward, stack)
                counts[name] += 1
    in_float32 = all(each.weight.dtype == torch.float32 for each in packed.values())
    for modeling in {sys.modules.get(type(module).__module__) for module in model.modules() if in_float32}:
        if hasattr(modeling, _ROTATION) and (rotation := _rotation_of(modeling)):
            replace_on(modeling, _ROTATION, rotation, stack)
            counts["rotary positions"] += 1
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing"


def _norm_of(module: nn.Module, packed: Mapping[nn.Module, Packed]) -> Forward | None:
    """Return a root-mean-square norm's forward in one pass; its variants add 0 or 1 to the weight."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, torch.Tensor) or not isinstance(epsilon, float) or weight.dtype != torch.float32:
        return None
    if weight.dim() != 1 or isinstance(module, nn.LayerNorm) or _is_watched(module):
        return None
    from onpolicy_sdft.rollout.cpu import passes as cpu_passes  # numba: not on a GPU

    kept = weight.detach().clone()  # numpy pins the memory it looks at, and gathered weights are given back

    def norm(offset: float) -> Forward:
        return _guarded(module.forward, torch.float32, lambda x: cpu_passes.rms_norm(x, kept, offset, epsilon))

    return _equal_one(module, [norm(0.0), norm(1.0)], _numbers(len(kept), torch.float32))


def _gated_unit_of(module: nn.Module, packed: Mapping[nn.Module, Packed]) -> Forward | None:
    """Return the forward of a gated unit, ``down(act(gate(x)) * up(x))``, whose act and product its linears do."""
    linears = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    act = getattr(module, "act_fn", getattr(module, "activation_fn", None))
    if not callable(act) or not all(isinstance(each, nn.Module) and each in packed for each in linears):
        return None
    if _is_watched(module) or _is_watched(act) or any(_has_hooks(each) for each in linears):
        return None
    gate, up, down = (packed[each] for each in linears if each is not None)
    activation = _activation_of(act)
    if activation is None:
        return None
    dtype = gate.weight.dtype
    unit = _guarded(module.forward, dtype, lambda x: down(up.times(x, gate.after(x, *activation))))
    size: int = linears[0].in_features  # type: ignore[union-attr]  # of a linear, or of the adapter around it
    return _equal_one(module, [unit], _numbers(size, dtype))


def _activation_of(act: Callable[[torch.Tensor], torch.Tensor]) -> tuple[str, str] | None:
    """Return which of oneDNN's activations a function is."""
    x = torch.linspace(-12, 12, 193)
    try:
        own = act(x)
    except Exception:  # it is no function of numbers alone
        return None
    fits = [name for name, each in _ACTIVATIONS.items() if torch.allclose(each(x), own, rtol=1e-6, atol=1e-6)]
    return fits[0] if len(fits) == 1 else None


def _guarded(own: Forward, dtype: torch.dtype, fast: Callable[[torch.Tensor], torch.Tensor]) -> Forward:
    """Return a forward that leaves what it was not compared on to the module's own."""

    def forward(x: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        if others or options or x.dtype != dtype or torch.is_grad_enabled():
            return own(x, *others, **options)
        return fast(x)

    return forward


def _equal_one(module: nn.Module, candidates: list[Forward], x: torch.Tensor) -> Forward | None:
    """Return the candidate that gives what the module gives."""
    try:
        own = module.forward(x)
        return next((each for each in candidates if _is_close(each(x), own)), None)
    except Exception:  # it takes or returns something else
        return None


def _is_watched(module: Any) -> bool:
    """Whether somebody else looks at a module's calls, or has given it another forward."""
    return isinstance(module, nn.Module) and (_has_hooks(module) or "forward" in module.__dict__)


def _has_hooks(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _rotation_of(modeling: Any) -> Callable[..., Any] | None:
    """Return a modeling file's rotation of queries and keys in one pass; what it is not meant for goes to its own."""
    from onpolicy_sdft.rollout.cpu import passes as cpu_passes  # numba: not on a GPU

    own = getattr(modeling, _ROTATION)
    own = getattr(own, "own", own)  # of an opening within another

    def rotation(q: Any, k: Any, cos: Any, sin: Any, *others: Any, **options: Any) -> Any:
        if others or options or not (_can_rotate(q, cos, sin) and _can_rotate(k, cos, sin)):
            return own(q, k, cos, sin, *others, **options)
        return cpu_passes.rotate(q, cos, sin), cpu_passes.rotate(k, cos, sin)

    rotation.own = own  # type: ignore[attr-defined]
    q, k = (_numbers(8, torch.float32, heads * 5).view(1, heads, -1, 8) for heads in (4, 2))
    cos, sin = (_numbers(8, torch.float32, 5, shift) for shift in (0.0, 1.0))
    try:
        theirs = own(q, k, cos, sin)
        fits = all(_is_close(mine, each) for mine, each in zip(rotation(q, k, cos, sin), theirs, strict=True))
    except Exception:  # it takes or returns something else
        return None
    return rotation if fits else None


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


def _numbers(size: int, dtype: torch.dtype, rows: int = 1, shift: float = 0.0) -> torch.Tensor:
    """Make [1, rows x scales, size] numbers, the same every time, without touching random state."""
    angles = 1.7 * torch.arange(rows * size, dtype=torch.float32).view(rows, size) + shift
    return torch.cat([scale * 3 * torch.sin(angles) for scale in _SCALES])[None].to(dtype)


def _is_close(mine: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether two results are equal but for rounding, row by row; zeros and what is not finite are equal to nothing."""
    if mine.shape != own.shape or mine.dtype != own.dtype:
        return False
    largest = own.abs().amax(-1, keepdim=True)
    if not bool((largest > 0).all()) or not bool(largest.isfinite().all()):
        return False
    return bool(((mine - own).abs() <= _TOLERANCE[own.dtype] * largest).all())
