"""Adapters: put them on, and get the model back that carries them."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.models.beside import refuse_unfit, refuse_untied, ties_copies, token_rows
from onpolicy_sdft.models.language import other_parts
from onpolicy_sdft.models.targets import linear_layers, misspelt, refuse_head, refuse_shared, why_not

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from onpolicy_sdft.config.schema import LoraConfig, ModelConfig


def prepare_trainable(
    model: PreTrainedModel,
    lora: LoraConfig,
    model_config: ModelConfig,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreTrainedModel | PeftModel:
    """Return the model with exactly the parameters trainable that the config says, in float32.

    Args:
        model: As loaded.
        lora: Adapter options; off means every weight is trained.
        model_config: For checkpointing and quantisation.
        seed: Seeds the adapters' initial weights.
        tokenizer: Knows the ids of ``lora.trainable_token_indices`` that are given as texts.

    Raises:
        ConfigError: If a name of ``lora`` matches nothing in the model, or what it names would not learn or could not
            be merged.
    """
    if model_config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if not lora.enabled:
        model.requires_grad_(True)
        for part in other_parts(model):
            model.get_submodule(part).requires_grad_(False)
        return model
    if model_config.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=model_config.gradient_checkpointing)
    refuse_unfit(model, lora)
    _refuse_pattern(lora)
    peft_config = _peft_config(model, lora, tokenizer)
    names, linear = [name for name, _ in model.named_modules()], linear_layers(model)
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks the old name
            # Of experts: their adapters are peft's own conversion of the names, which it then does not find again.
            warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys")
            torch.manual_seed(seed)
            adapted = cast(PeftModel, get_peft_model(model, peft_config, revision=model_config.revision))
    except (ValueError, TypeError) as error:
        raise ConfigError(misspelt(lora, peft_config, names) or why_not(lora, error, linear)) from error
    if said := misspelt(lora, peft_config, names):
        raise ConfigError(said)
    refuse_head(adapted, lora)
    refuse_shared(adapted, lora)
    refuse_untied(inner_model(adapted))
    return adapted


def _refuse_pattern(lora: LoraConfig) -> None:
    if isinstance(lora.target_modules, str):
        try:
            re.compile(lora.target_modules)
        except re.error as error:
            raise ConfigError(
                f"lora.target_modules={lora.target_modules!r} is no pattern: {error}. Fix: a list of names, such as "
                "[q_proj, v_proj], or a regular expression."
            ) from error


def _peft_config(model: PreTrainedModel, lora: LoraConfig, tokenizer: PreTrainedTokenizerBase | None) -> PeftLoraConfig:
    return PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        target_modules=lora.target_modules,
        exclude_modules="|".join(rf"{re.escape(part)}(\..*)?" for part in other_parts(model)) or None,
        target_parameters=lora.target_parameters or None,
        modules_to_save=lora.modules_to_save or None,
        ensure_weight_tying=ties_copies(model, lora),
        trainable_token_indices=token_rows(model, lora, tokenizer),
        task_type="CAUSAL_LM",
    )


def embedding_weight(model: PreTrainedModel) -> torch.Tensor:
    """Return the input embedding's weight [V, D]: it tells where a model lives and in which dtype."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight


def inner_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the causal language model itself, adapters in place, without PEFT's wrapper."""
    return cast("PreTrainedModel", model.get_base_model()) if isinstance(model, PeftModel) else model
