"""How large a model is, without its weights: from its config, on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM

from onpolicy_sdft.errors import ModelError
from onpolicy_sdft.models.load import DTYPES, resolve_source
from onpolicy_sdft.models.lora import prepare_trainable

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import LoraConfig, ModelConfig


@dataclass(frozen=True, slots=True)
class Sizes:
    """What memory follows from."""

    num_parameters: int
    num_trainable: int
    num_adapted: int  # parameters of the layers that carry adapters: a merged copy has as many
    bytes_per_parameter: int  # of the weights as they are stored
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    kv_size: int  # key elements of one position and layer, as many again for values


def model_sizes(model: ModelConfig, lora: LoraConfig) -> Sizes:
    """Return the sizes of a model as it would be trained; its config is read, its weights are not.

    Raises:
        ModelError: If there is no such model.
    """
    try:
        config = AutoConfig.from_pretrained(
            resolve_source(model), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config, dtype=DTYPES[model.dtype])
    except (OSError, ValueError) as error:
        raise ModelError(f"Cannot read the config of model.name={model.name!r}: {error}") from error
    made = prepare_trainable(made, lora, model, seed=0)
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    adapted: list[Any] = [module.get_base_layer() for module in made.modules() if isinstance(module, LoraLayer)]
    return Sizes(
        num_parameters=sum(p.numel() for p in made.parameters()),
        num_trainable=sum(p.numel() for p in made.parameters() if p.requires_grad),
        num_adapted=sum(layer.weight.numel() for layer in adapted),
        bytes_per_parameter=DTYPES[model.dtype].itemsize,
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocab_size=text.vocab_size,
        kv_size=(getattr(text, "num_key_value_heads", None) or heads) * head_size,
    )
