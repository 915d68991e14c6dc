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
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from onpolicy_sdft.models.beside import rows_in_place, unread_modules
from onpolicy_sdft.models.lora import embedding_weight, inner_model
from onpolicy_sdft.models.seam import UnsupportedModel
from onpolicy_sdft.rollout.copies import Copies, Plain, Source
from onpolicy_sdft.rollout.fused import fuse, replace_on
from onpolicy_sdft.rollout.kernels import best_kernels

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.rollout.attention import KernelName
    from onpolicy_sdft.rollout.cpu.fusing import Packed
    from onpolicy_sdft.rollout.gpu.layers import LayerFusion

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
        """Say where they lie and how they are read: equal while a captured step is good."""
        ...

    def release(self) -> None:
        """Give back the memory of copies that are kept between openings."""
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
            layout. With ``triton``, ``packed`` also copies linears that read the same numbers side by side, so that
            they are one product, and ``auto`` and ``bfloat16`` do where memory allows.
        keep: Leave copies where they are between openings, so that graphs that read them stay good.
        triton: Fuse what stands between linears with kernels for a GPU.
    """

    model: PreTrainedModel | PeftModel
    merge_adapter: bool = True
    decode_copy: DecodeCopy = "auto"
    keep: bool = False
    triton: bool = False
    num_bytes: int = 0
    fused: str = "nothing"
    _copies: Copies | None = None
    _layers: LayerFusion | None = None
    _narrowed: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)

    @staticmethod
    def on_device(
        model: PreTrainedModel | PeftModel,
        merge_adapter: bool = True,
        decode_copy: DecodeCopy = "auto",
        attention: KernelName | None = None,
    ) -> LocalWeights:
        """Return the view for where a model lives: on a GPU copies stay, and kernels fuse where they attend."""
        on_gpu = model.device.type == "cuda"
        best = attention or best_kernels(model.device, embedding_weight(inner_model(model)).dtype)
        triton = on_gpu and best == "triton"
        return LocalWeights(model, merge_adapter, decode_copy, keep=on_gpu, triton=triton)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Patch modules on entry, restore them on exit; what was copied is freed then, unless it is kept."""
        model = inner_model(self.model)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(rows_in_place(model))
                weight = embedding_weight(model)
                narrow = self.decode_copy == "bfloat16" and weight.dtype == torch.float32
                dtype = torch.bfloat16 if narrow else weight.dtype
                on_cpu = weight.device.type == "cpu"
                pack = self.decode_copy != "none" and on_cpu and can_pack(dtype) and not self.triton
                sources = self._sources(model)
                packed = self._pack(sources, dtype, stack) if pack else {}
                copied = packed if pack else self._copy(model, sources, dtype, stack)
                if narrow:
                    # The embedding may also be the output layer: it is looked up in bfloat16 then.
                    unread = {source.linear.weight for source in sources if source.module in copied} - {weight}
                    self.num_bytes += self._narrow(model, unread, stack)
                if self.triton:
                    self._fuse_on_gpu(model, dtype, stack)
                elif pack:
                    from onpolicy_sdft.rollout.cpu.fusing import CpuPasses  # numba: not on a GPU

                    self.fused = fuse(model, CpuPasses(packed, dtype), stack)
                yield
        finally:
            if not self.keep:
                self.release()

    def _pack(
        self, sources: Sequence[Source], dtype: torch.dtype, stack: contextlib.ExitStack
    ) -> dict[nn.Module, Packed]:
        """Copy every linear into the layout of a CPU's kernels; return them by the module that each stands for."""
        from onpolicy_sdft.rollout.cpu.fusing import Packed  # numba: not on a GPU

        self.num_bytes, packed = 0, {}
        for source in sources:
            kept = source.weight().to(dtype)
            bias = None if source.linear.bias is None else source.linear.bias.data.to(dtype)
            packed[source.module] = Packed(pack_linear(kept), bias)
            replace_on(source.module, "forward", packed[source.module], stack)
            self.num_bytes += kept.nbytes
        return packed

    def _copy(
        self, model: nn.Module, sources: Sequence[Source], dtype: torch.dtype, stack: contextlib.ExitStack
    ) -> dict[nn.Module, Plain]:
        """Copy what is merged, and on a GPU what saves products; return it by the module that each stands for."""
        if self._copies is None:
            where_memory_allows = self.triton and self.decode_copy in ("auto", "bfloat16")
            self._copies = Copies(None if where_memory_allows else self.triton and self.decode_copy == "packed")
        self._copies.refresh(model, sources, dtype)
        for module, plain in self._copies.linears.items():
            replace_on(module, "forward", plain, stack)
        self.num_bytes = self._copies.num_bytes
        return self._copies.linears

    def _fuse_on_gpu(self, model: PreTrainedModel, dtype: torch.dtype, stack: contextlib.ExitStack) -> None:
        from onpolicy_sdft.rollout.gpu.fusing import GpuPasses  # Triton: not on a CPU
        from onpolicy_sdft.rollout.gpu.layers import LayerFusion

        assert self._copies is not None
        if self._layers is None:
            self._layers = LayerFusion()
        layers = self._layers.fuse(model, self._copies, dtype, stack)
        done = {part for layer in layers for part in layer.modules()}
        self.fused = fuse(model, GpuPasses(self._copies, dtype), stack, done)
        if layers:
            self.fused = f"{len(layers)} layers, {self.fused}"

    def fingerprint(self) -> object:
        """Say where the weights lie and which adapters are read."""
        model = inner_model(self.model)
        places = tuple(each.data_ptr() for group in (model.parameters(), model.buffers()) for each in group)
        copies = () if self._copies is None else self._copies.addresses()
        adapters = tuple(
            (tuple(module.active_adapters), module.disable_adapters, tuple(module.scaling.items()))
            for module in model.modules()
            if isinstance(module, LoraLayer)
        )
        return places, copies, adapters, self.fused

    def release(self) -> None:
        """Give back the memory of copies that are kept between openings."""
        self._copies = None
        self._layers = None
        self._narrowed.clear()

    def _sources(self, model: nn.Module) -> list[Source]:
        """Return every linear with the module whose forward stands for it: itself, or the adapter around it."""
        mergeable = self.merge_adapter and all(
            _can_merge(module) for module in model.modules() if isinstance(module, LoraLayer)
        )
        # Adapters that are not merged are float32 on a bfloat16 base, and are handed float32: they stay as they are.
        held = embedding_weight(inner_model(self.model)).dtype
        found: list[Source] = []
        inside = unread_modules(model)
        for module in model.modules():
            if isinstance(module, LoraLayer) and isinstance(module, nn.Module) and mergeable:
                base: Any = module.get_base_layer()
                found.append(Source(module, base, functools.partial(_merged_weight, module), True))
                inside |= set(module.modules())
            elif type(module) is nn.Linear and module not in inside and module.weight.dtype == held:
                found.append(Source(module, module, functools.partial(getattr, module.weight, "data"), False))
        return found

    def _narrow(self, model: nn.Module, unused: set[torch.Tensor], stack: contextlib.ExitStack) -> int:
        """Point every float32 parameter that is read at a bfloat16 copy of itself; return the bytes of the copies."""
        num_bytes = 0
        for parameter in model.parameters():
            if parameter.dtype == torch.float32 and parameter not in unused:
                if parameter not in self._narrowed:
                    self._narrowed[parameter] = torch.empty_like(parameter.data, dtype=torch.bfloat16)
                self._narrowed[parameter].copy_(parameter.data)
                stack.callback(setattr, parameter, "data", parameter.data)
                parameter.data = self._narrowed[parameter]
                num_bytes += parameter.data.nbytes
        return num_bytes


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


def whole_weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a model's weights under the names that its checkpoints have, adapters merged, a layer at a time.

    Args:
        model: With or without adapters; its weights are whole.

    Raises:
        UnsupportedModel: If an adapter cannot be merged.
    """
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    inside = tuple(f"{name}." for name in adapted)
    found: dict[str, Callable[[], torch.Tensor]] = {
        name: functools.partial(getattr, tensor, "data")
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not name.startswith(inside)
    }
    for name, module in adapted.items():
        layer: Any = module
        base = layer.get_base_layer()
        if not layer.disable_adapters and not _can_merge(layer):
            raise UnsupportedModel(f"the adapter on {name} ({type(base).__name__}) cannot be merged")
        found[f"{name}.weight"] = functools.partial(_shown_weight, layer)
        if getattr(base, "bias", None) is not None:
            found[f"{name}.bias"] = functools.partial(getattr, base.bias, "data")
    for _, group in itertools.groupby(sorted(found, key=_layer_of), key=_layer_of):
        # Some models hold several of a checkpoint's tensors as one, those of experts say.
        yield from revert_weight_conversion(model, {name: found[name]() for name in group}).items()


def _layer_of(name: str) -> int:
    """Return the number of the layer that a weight is named after; -1 where there is none."""
    number = re.search(r"\.(\d+)\.", name)
    return -1 if number is None else int(number[1])


def _shown_weight(layer: Any) -> torch.Tensor:
    """Return what a layer with an adapter multiplies by: with it, or without where it is switched off."""
    base: torch.Tensor = layer.get_base_layer().weight.data
    return base if layer.disable_adapters else _merged_weight(layer)


def _merged_weight(layer: Any) -> torch.Tensor:
    base = layer.get_base_layer().weight.data
    wide = base if base.dtype == torch.float64 else base.float()
    update = sum(layer.get_delta_weight(name).to(wide.dtype) for name in layer.active_adapters)
    merged: torch.Tensor = wide + update
    for magnitude in layer.lora_magnitude_vector.values():  # DoRA: one adapter, so one length for each row
        merged *= (magnitude.weight.data.to(wide.dtype) / torch.linalg.norm(merged, dim=1))[:, None]
    return merged.to(base.dtype)


def _can_merge(layer: Any) -> bool:
    base = layer.get_base_layer()
    return type(layer) is LoraLinear and type(base) is nn.Linear and not layer.disable_adapters and not layer.merged
