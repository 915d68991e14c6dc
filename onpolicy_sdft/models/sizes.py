"""How large a model is: of one at hand, or without its weights, from its config, on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig

from onpolicy_sdft.models.complete import refuse_unloadable
from onpolicy_sdft.models.language import class_for, other_parts
from onpolicy_sdft.models.load import DTYPES, adapter_base, is_adapter, load_tokenizer, resolve_source
from onpolicy_sdft.models.lora import embedding_weight, inner_model, prepare_trainable
from onpolicy_sdft.models.targets import adapted_weights

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.config.schema import LoraConfig, ModelConfig


_BYTES_IN_4_BITS = 0.5 + 4 / 64  # bitsandbytes: one float32 scale for 64 weights


@dataclass(frozen=True, slots=True)
class Sizes:
    """What memory follows from."""

    num_parameters: int
    num_trainable: int
    num_adapted: int  # parameters of the layers that carry adapters: a merged copy has as many
    num_quantised: int  # parameters of the layers that a 4-bit base holds in 4 bits
    bytes_per_parameter: int  # of the other weights as they are stored
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    kv_size: int  # key elements of one position and layer, as many again for values
    has_other_parts: bool  # weights that no text passes, such as a vision tower

    @property
    def num_bytes(self) -> float:
        """Memory of the weights."""
        whole = self.num_parameters - self.num_quantised
        return whole * self.bytes_per_parameter + self.num_quantised * _BYTES_IN_4_BITS


def model_sizes(model: ModelConfig, lora: LoraConfig) -> Sizes:
    """Return the sizes of a model as it would be trained; its config is read, its weights are not.

    Raises:
        ModelError: If there is no such model.
    """
    source = resolve_source(model)
    while is_adapter(source, model.revision):  # merged when it is loaded: it has the size of its base
        model = adapter_base(source, model)
        source = resolve_source(model)
    try:
        config = AutoConfig.from_pretrained(source, revision=model.revision, trust_remote_code=model.trust_remote_code)
        with torch.device("meta"):
            made = class_for(config).from_config(config, dtype=DTYPES[model.dtype])
    except Exception as error:  # whatever the libraries raise
        refuse_unloadable(error, f"the config of model.name={model.name!r}", (), "a local path, or a hub id")
    linear = [module for module in made.modules() if isinstance(module, torch.nn.Linear)]
    in_4_bits = [layer for layer in linear if layer is not made.get_output_embeddings()] if model.load_in_4bit else []
    num_quantised = sum(layer.weight.numel() for layer in in_4_bits)
    tokenizer = load_tokenizer(source, model) if lora.enabled and lora.trainable_token_indices else None
    return sizes_of(prepare_trainable(made, lora, model, seed=0, tokenizer=tokenizer), num_quantised)


def sizes_of(model: PreTrainedModel | PeftModel, num_quantised: int = 0) -> Sizes:
    """Return the sizes of a model that is to be trained, before its parameters are divided among ranks.

    Args:
        model: With its adapters, if it has any; on any device.
        num_quantised: Parameters that will be held in 4 bits and are not yet. Those that are, are counted as held.
    """
    inner = inner_model(model)
    text = inner.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 0  # none: a model without attention keeps no keys
    head_size = getattr(text, "head_dim", None) or text.hidden_size // max(1, heads)
    return Sizes(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        num_adapted=sum(weight.numel() for weight in adapted_weights(model)),
        num_quantised=num_quantised,
        bytes_per_parameter=embedding_weight(inner).element_size(),
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocab_size=text.vocab_size,
        kv_size=(getattr(text, "num_key_value_heads", None) or heads) * head_size,
        has_other_parts=bool(other_parts(inner)),
    )


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return the number of trained and of all parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)
