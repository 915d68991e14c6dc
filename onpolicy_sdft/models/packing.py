"""Which models learn packed rows, found out before the first step: by what the config says, and by trying."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from onpolicy_sdft.models.lora import embedding_weight, inner_model
from onpolicy_sdft.models.packed import Packing, Scoring, kernel_takes, packed_attention
from onpolicy_sdft.models.policy import body
from onpolicy_sdft.models.seam import UnsupportedModel, refuse_by_config, wrong_window
from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.models.trial import how_far_off, own_hidden, texts

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Packs:
    """Whether a model learns packed rows."""

    refusal: str = ""  # why it cannot; empty: it can
    drawback: str = ""  # why padded rows are faster on the device; empty: they are not


def examine(
    model: PreTrainedModel | PeftModel,
    autocast: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
    dtype: torch.dtype,
) -> Packs:
    """Find out whether a model gives on packed rows what it gives on each text alone, and how it would compute it.

    Three short texts are run packed and compared with each alone. Weights that were divided when they were loaded
    cannot be run yet: then the config alone decides.

    Args:
        model: With or without adapters, before it is divided among ranks.
        autocast: Gives the context that learning computes in.
        device: Where learning computes; the model may wait on the CPU still.
        dtype: What attention computes in there.
    """
    inner = inner_model(model)
    layers: list[Scoring] = []
    try:
        refuse_by_config(inner)
        if getattr(inner.config.get_text_config(), "attention_dropout", 0.0):
            raise UnsupportedModel("its attention drops out while it learns")
        weight = embedding_weight(inner)
        if weight.numel() and not weight.is_meta:
            with no_trace(model), autocast():
                layers = _try(inner)
    except UnsupportedModel as error:
        return Packs(str(error))
    except Exception as error:  # whatever a model's own code raises when its attention is another
        return Packs(f"its forward failed on packed rows ({type(error).__name__}: {error})")
    if device.type == "cuda" and not all(kernel_takes(device, dtype, how) for how in layers):
        return Packs(drawback=f"torch's variable-length attention does not take it in {dtype} on this GPU")
    return Packs()


def _try(model: PreTrainedModel) -> list[Scoring]:
    """Return how each layer scores.

    Raises:
        UnsupportedModel: If hidden states differ, or a layer's window does.
    """
    device = embedding_weight(model).device
    config = model.config.get_text_config()
    tried = texts(config.vocab_size)
    own = [own_hidden(model, text) for text in tried]
    layers: list[Scoring] = []
    packing = replace(Packing.of([len(text) for text in tried], device), seen=layers)
    with packed_attention(model):
        hidden = body(model)(
            input_ids=torch.tensor([[token for text in tried for token in text]], device=device),
            position_ids=packing.positions, use_cache=False, packing=packing,
        ).last_hidden_state[0]  # fmt: skip
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    if off := how_far_off(model, tried, hidden[packing.bounds[1:].long() - 1], own, dtype):
        raise UnsupportedModel(f"its hidden states of packed rows are {off:.2g} (relative) off its own")
    if not layers:
        raise UnsupportedModel("its layers do not attend through AttentionInterface")
    if wrong := wrong_window(config, [how.window for how in layers]):
        raise UnsupportedModel(wrong)
    return layers
