"""Norms, gated units and rotary positions done in few calls while the engine decodes.

Between its linears a decoder layer of transformers calls some forty small operations, whose calls cost more than their
work at the few rows of a decode forward. What is put in their place is compared with the model's own first, on numbers
from small to very large, and whatever differs, returns nothing to compare, or has hooks keeps its own operations: no
module is taken for what its name says. What each device offers is in ``cpu/fusing.py`` and ``gpu/fusing.py``.

Shape letters: N tokens, H heads, D head size.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import torch
from torch import nn

_ROTATION = "apply_rotary_pos_emb"  # what modeling files of transformers call it
#: Largest difference from what is replaced, in the largest number of its row: rounding, never another formula.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_SCALES = (1e-3, 1.0, 1e2)  # an epsilon shows at the small end, a clamp at the large one

Forward = Callable[..., torch.Tensor]
Pass = Callable[[torch.Tensor], torch.Tensor]


class Passes(Protocol):
    """What a device does in one call."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers between linears."""
        ...

    @property
    def activations(self) -> Mapping[Any, Pass]:
        """Activations by the device's own name, each as torch has it."""
        ...

    def norms(self, weight: torch.Tensor, epsilon: float) -> list[Pass]:
        """Return root-mean-square norms that a module with this weight may be; none where none is offered."""
        ...

    def unit(self, gate: nn.Module, up: nn.Module, down: nn.Module, activation: Any) -> Pass | None:
        """Return ``down(activation(gate(x)) * up(x))``."""
        ...

    def rotate(self) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """Return the rotation of [1, H, N, D] by cosines and sines [1, N, D]."""
        ...


def replace_on(owner: Any, name: str, value: Any, stack: contextlib.ExitStack) -> None:
    """Give an object an attribute of its own, over its class's, until the stack closes."""
    if name in owner.__dict__:
        stack.callback(owner.__dict__.__setitem__, name, owner.__dict__[name])
    else:
        stack.callback(owner.__dict__.pop, name)
    owner.__dict__[name] = value


@torch.no_grad()
def fuse(
    model: nn.Module, passes: Passes, stack: contextlib.ExitStack, done: Collection[nn.Module] = frozenset()
) -> str:
    """Replace what can be replaced until the stack closes. Call it with the linears to decode from in place.

    Args:
        model: In eval mode.
        passes: Of its device.
        stack: Puts everything back.
        done: Modules that are part of something larger that was replaced.

    Returns:
        What was replaced, for people.
    """
    counts = {"norms": 0, "gated units": 0, "rotary positions": 0}
    for module in [each for each in model.modules() if each not in done]:
        for name, find in (("norms", _norm_of), ("gated units", _gated_unit_of)):
            if forward := find(module, passes):
                replace_on(module, "forward", forward, stack)
                counts[name] += 1
    device = next(model.parameters()).device
    for modeling in {sys.modules.get(type(module).__module__) for module in model.modules()}:
        if hasattr(modeling, _ROTATION) and (rotation := _rotation_of(modeling, passes, device)):
            replace_on(modeling, _ROTATION, rotation, stack)
            counts["rotary positions"] += 1
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing"


def _norm_of(module: nn.Module, passes: Passes) -> Forward | None:
    """Return a root-mean-square norm's forward in one pass."""
    weight = getattr(module, "weight", None)
    epsilon = norm_epsilon(module)
    if not isinstance(weight, torch.Tensor) or epsilon is None or weight.dim() != 1 or is_patched(module):
        return None
    norms = [_guarded(module.forward, weight.dtype, each) for each in passes.norms(weight, epsilon)]
    return _equal_one(module, norms, numbers(len(weight), weight.dtype, weight.device)) if norms else None


def norm_epsilon(module: nn.Module) -> float | None:
    """Return what a root-mean-square norm adds to the mean square, under the names it has in transformers."""
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return epsilon if isinstance(epsilon, float) and not isinstance(module, nn.LayerNorm) else None


def _gated_unit_of(module: nn.Module, passes: Passes) -> Forward | None:
    """Return the forward of a gated unit, ``down(act(gate(x)) * up(x))``."""
    linears = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    act = getattr(module, "act_fn", getattr(module, "activation_fn", None))
    if not callable(act) or not all(isinstance(each, nn.Module) for each in linears):
        return None
    if is_patched(module) or is_patched(act) or any(has_hooks(each) for each in linears):
        return None
    gate, up, down = (each for each in linears if each is not None)
    activation = activation_of(act, passes)
    fast = None if activation is None else passes.unit(gate, up, down, activation)
    if fast is None:
        return None
    size: int = gate.in_features  # of a linear, or of the adapter around it
    unit = _guarded(module.forward, passes.dtype, fast)
    return _equal_one(module, [unit], numbers(size, passes.dtype, next(module.parameters()).device))


def activation_of(act: Callable[[torch.Tensor], torch.Tensor], passes: Passes) -> Any:
    """Return which of a device's activations a function is; None: none of them."""
    x = torch.linspace(-12, 12, 193)
    try:
        own = act(x)
    except Exception:  # it is no function of numbers alone
        return None
    fits = [name for name, each in passes.activations.items() if torch.allclose(each(x), own, rtol=1e-6, atol=1e-6)]
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
        return next((each for each in candidates if is_close(each(x), own)), None)
    except Exception:  # it takes or returns something else
        return None


def is_patched(module: Any) -> bool:
    """Whether somebody else looks at a module's calls, or has given it another forward."""
    return isinstance(module, nn.Module) and (has_hooks(module) or "forward" in module.__dict__)


def has_hooks(module: Any) -> bool:
    """Whether somebody looks at a module's calls."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _rotation_of(modeling: Any, passes: Passes, device: torch.device) -> Callable[..., Any] | None:
    """Return a modeling file's rotation of queries and keys in one pass; what it is not meant for goes to its own."""
    fast = passes.rotate()
    if fast is None:
        return None
    own = getattr(modeling, _ROTATION)
    own = getattr(own, "own", own)  # of an opening within another

    def rotation(q: Any, k: Any, cos: Any, sin: Any, *others: Any, **options: Any) -> Any:
        fits = all(_can_rotate(each, cos, sin, passes.dtype, device) for each in (q, k))
        if others or options or not fits:
            return own(q, k, cos, sin, *others, **options)
        return fast(q, cos, sin), fast(k, cos, sin)

    rotation.own = own  # type: ignore[attr-defined]
    q, k = (numbers(8, passes.dtype, device, heads * 5).view(1, heads, -1, 8) for heads in (4, 2))
    cos, sin = (numbers(8, passes.dtype, device, 5, shift) for shift in (0.0, 1.0))
    try:
        theirs = own(q, k, cos, sin)
        fits = all(is_close(mine, each) for mine, each in zip(rotation(q, k, cos, sin), theirs, strict=True))
    except Exception:  # it takes or returns something else
        return None
    return rotation if fits else None


def _can_rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether [1, H, N, D] and [1, N, D] of the expected type and place are given, without gradients."""
    return (
        x.dim() == 4
        and cos.dim() == 3
        and cos.shape == sin.shape == (1, x.shape[2], x.shape[3])
        and len(x) == 1
        and {x.dtype, cos.dtype, sin.dtype} == {dtype}
        and {x.device, cos.device, sin.device} == {device}
        and not torch.is_grad_enabled()
    )


def numbers(size: int, dtype: torch.dtype, device: torch.device, rows: int = 1, shift: float = 0.0) -> torch.Tensor:
    """Make [1, rows x scales, size] numbers, the same every time, without touching random state."""
    angles = 1.7 * torch.arange(rows * size, dtype=torch.float32).view(rows, size) + shift
    return torch.cat([scale * 3 * torch.sin(angles) for scale in _SCALES])[None].to(device, dtype)


def is_close(mine: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether two results are equal but for rounding, row by row; zeros and what is not finite are equal to nothing."""
    if mine.shape != own.shape or mine.dtype != own.dtype:
        return False
    largest = own.abs().amax(-1, keepdim=True)
    if not bool((largest > 0).all()) or not bool(largest.isfinite().all()):
        return False
    return bool(((mine - own).abs() <= _TOLERANCE[own.dtype] * largest).all())
