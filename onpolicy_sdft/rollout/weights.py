"""What generation reads the weights from: where they are, or a decode copy that lives as long as one rollout.

Unmerged adapters cost two small products per linear and token, which nearly doubles the time of a decode step, so
the LoRA-targeted linears are read from a merged copy. On a CPU every linear may be copied into the layout its
kernels want, which is twice as fast again, and the small operations between linears are put together (``fused.py``).
Parameters are never written to: modules are given another ``forward``
(and, for a bfloat16 copy, other storage) while the view is open, and get their own back, also after an exception.

Weights that do not exist outside a gather (ZeRO-3, FSDP2) are one more :class:`WeightsView`: gather on entry.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn

from onpolicy_sdft.models.lora import embedding_weight, inner_model
from onpolicy_sdft.rollout.fused import Packed, fuse, replace_on

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

DecodeCopy = Literal["auto", "none", "packed", "bfloat16"]

_PACK_ROWS = 32  # rows oneDNN is told to lay weights out for; good from 1 to 1,024 where it was measured
_PACKABLE = (torch.float32, torch.bfloat16)


class WeightsView(Protocol):
    """Weights to decode from."""

    num_bytes: int  # of copies, while the view is open; known after it was opened once
    fused: str  # what is done in fewer operations than the model's own, for people; the same

    def open(self) -> contextlib.AbstractContextManager[None]:
        """Make the weights readable through the model for the length of the context."""
        ...

    def fingerprint(self) -> object:
        """Say where they lie and how they are read while the view is open: equal where a captured step is still good."""
        ...


@dataclass
class LocalWeights:
    """Weights that are whole on this device.

    Args:
        model: The live model, adapters in place.
        merge_adapter: Read LoRA-targeted linears from a merged copy.
        decode_copy: ``none``: copy nothing else. ``packed``: copy every linear into the layout of the CPU's kernels
            (float32 and bfloat16 on a CPU; elsewhere as ``none``) and fuse what stands between them. ``bfloat16``:
            copy float32 weights in bfloat16, on a CPU packed as well. ``auto``: ``packed`` where there is such a
            layout.
    """

    model: PreTrainedModel | PeftModel
    merge_adapter: bool = True
    decode_copy: DecodeCopy = "auto"
    num_bytes: int = 0
    fused: str = "nothing"
    _copies: dict[object, torch.Tensor] = field(default_factory=dict)  # at fixed addresses between openings

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Patch modules on entry, restore them on exit; what was copied is freed then."""
        model = inner_model(self.model)
        weight = embedding_weight(model)
        narrow = self.decode_copy == "bfloat16" and weight.dtype == torch.float32
        dtype = torch.bfloat16 if narrow else weight.dtype
        pack = self.decode_copy != "none" and weight.device.type == "cpu" and can_pack(dtype)
        self.num_bytes = 0
        with contextlib.ExitStack() as stack:
            replaced: set[torch.Tensor] = set()
            packed: dict[nn.Module, Packed] = {}
            for module, linear in self._linears(model):
                merged = isinstance(module, LoraLayer)
                if not pack and not merged:
                    continue
                kept = (_merged_weight(module) if merged else linear.weight.data).to(dtype)
                bias = None if linear.bias is None else linear.bias.data.to(dtype)
                if pack:
                    packed[module] = Packed(pack_linear(kept), bias)
                forward = packed[module] if pack else _plain_forward(kept, bias)
                replace_on(module, "forward", forward, stack)
                self.num_bytes += kept.nbytes
                replaced.add(linear.weight)
            if narrow:
                self.num_bytes += _narrow(model, replaced - {weight}, stack)
            if pack:
                self.fused = fuse(model, packed, stack)
            yield

    def fingerprint(self) -> object:
        """Say where the weights lie and which adapters are read."""
        model = inner_model(self.model)
        places = tuple(each.data_ptr() for group in (model.parameters(), model.buffers()) for each in group)
        copies = tuple(each.data_ptr() for each in self._copies.values())
        adapters = tuple(
            (tuple(module.active_adapters), module.disable_adapters, tuple(module.scaling.items()))
            for module in model.modules()
            if isinstance(module, LoraLayer)
        )
        return places, copies, adapters, self.fused

    def release(self) -> None:
        """Give back the memory of copies that are kept between openings."""
        self._copies.clear()

    def _linears(self, model: nn.Module) -> list[tuple[nn.Module, nn.Linear]]:
        """Return every linear with the module whose forward stands for it: itself, or the adapter around it."""
        mergeable = self.merge_adapter and all(
            _can_merge(module) for module in model.modules() if isinstance(module, LoraLayer)
        )
        found: list[tuple[nn.Module, nn.Linear]] = []
        inside: set[nn.Module] = set()
        for module in model.modules():
            if isinstance(module, LoraLayer) and isinstance(module, nn.Module) and mergeable:
                base: Any = module.get_base_layer()
                found.append((module, base))
                inside |= set(module.modules())
            elif type(module) is nn.Linear and module not in inside:
                found.append((module, module))
        return found


@functools.cache
def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of torch, on this CPU, has oneDNN's linear with weights in its own layout: found by trying."""
    if dtype not in _PACKABLE:
        return False
    try:
        packed = pack_linear(torch.zeros(16, 16, dtype=dtype))
        torch.ops.mkldnn._linear_pointwise(torch.zeros(1, 16, dtype=dtype), packed, None, "none", [], "")
    except (RuntimeError, AttributeError):  # a build without oneDNN, or a CPU without the instructions of a type
        return False
    return True


def pack_linear(weight: torch.Tensor) -> torch.Tensor:
    """Copy a weight [out, in] into oneDNN's blocked layout."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_ROWS)
    return packed


def _plain_forward(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return nn.functional.linear(x, weight, bias)

    return forward


def _merged_weight(layer: Any) -> torch.Tensor:
    base = layer.get_base_layer().weight.data
    wide = base if base.dtype == torch.float64 else base.float()
    update = sum(layer.get_delta_weight(name).to(wide.dtype) for name in layer.active_adapters)
    merged: torch.Tensor = wide + update
    return merged.to(base.dtype)


def _can_merge(layer: Any) -> bool:
    base = layer.get_base_layer()
    return (
        type(layer) is LoraLinear
        and type(base) is nn.Linear
        and not layer.disable_adapters
        and not layer.merged
        and not any(getattr(layer, "use_dora", {}).values())
    )


def _narrow(model: nn.Module, unused: set[torch.Tensor], stack: contextlib.ExitStack) -> int:
    """Point every float32 parameter that is read at a bfloat16 copy of itself; return the bytes of the copies."""
    num_bytes = 0
    for parameter in model.parameters():
        if parameter.dtype == torch.float32 and parameter not in unused:
            stack.callback(setattr, parameter, "data", parameter.data)
            parameter.data = parameter.data.to(torch.bfloat16)
            num_bytes += parameter.data.nbytes
    return num_bytes
