"""What generation reads the weights from: in place, or a merged scratch copy of the LoRA-targeted linears.

Unmerged adapters cost two small products per linear and token, which nearly doubles the time of a decode step.
PEFT's own in-place merge and unmerge do not give a bfloat16 base back exactly; here the base tensors are set
aside, untouched, and put back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def merged_adapter(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Decode from merged weights; the base and the adapter are as before afterwards, also after an exception.

    Memory: one more copy of the targeted linears, in the base's dtype, while the context is open. A model without
    adapters, with its adapter off, or with a base that cannot be merged (quantised, convolutions) is left as it is.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not isinstance(model, PeftModel) or not all(_can_merge(layer) for layer in layers):
        yield
        return
    kept = [layer.get_base_layer().weight.data for layer in layers]
    try:
        for layer, base in zip(layers, kept, strict=True):
            update = sum(layer.get_delta_weight(name).float() for name in layer.active_adapters)
            layer.get_base_layer().weight.data = (base.float() + update).to(base.dtype)
        with model.disable_adapter():
            yield
    finally:
        for layer, base in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data = base


def _can_merge(layer: LoraLayer) -> bool:
    base = layer.get_base_layer()
    return type(layer) is LoraLinear and type(base) is torch.nn.Linear and not layer.disable_adapters
