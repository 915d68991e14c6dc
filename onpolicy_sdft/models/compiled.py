"""Decoder layers compiled for learning, one by one: few kernels a layer, and one compilation for all that are alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.policy import body

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def compile_layers(model: PreTrainedModel | PeftModel, compiler: str = "inductor") -> int:
    """Have torch compile each decoder layer the first time it learns; names of parameters stay as they are.

    Args:
        model: With or without adapters, before it is wrapped.
        compiler: Of ``torch.compile``.

    Returns:
        The number of layers.

    Raises:
        ConfigError: If the model has no list of layers.
    """
    layers = getattr(body(inner_model(model)), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        name = type(inner_model(model)).__name__
        raise ConfigError(f"train.compile=true, but {name} has no list of layers. Fix: --train.compile false")
    for layer in layers:
        # Sizes are symbols from the start: every micro-batch has its own number of tokens.
        layer.compile(backend=compiler, dynamic=True)
    return len(layers)


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run a model's layers as they are written: the engine gives some another forward, and calls them in other ways."""
    compiled = {module: module._compiled_call_impl for module in model.modules()}
    compiled = {module: call for module, call in compiled.items() if call is not None}
    try:
        for module in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call
