"""Tried before the first step: what would go wrong while a model learns, or only when it is saved."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from torch.nn import functional as F

from onpolicy_sdft.errors import ModelError
from onpolicy_sdft.models.beside import trained_rows
from onpolicy_sdft.models.complete import some
from onpolicy_sdft.models.export import try_saving
from onpolicy_sdft.models.language import other_parts
from onpolicy_sdft.models.lora import embedding_weight, inner_model
from onpolicy_sdft.models.modes import keeping_modes
from onpolicy_sdft.models.policy import body, head_of
from onpolicy_sdft.models.randomness import refuse_random, runs_whole, silence
from onpolicy_sdft.models.targets import adapted_layers, describe_reach, fix_naming

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from onpolicy_sdft.models.load import LoadedModel

logger = logging.getLogger(__name__)

_LENGTHS = (16, 512)  # tokens of the trial; more are taken where few may not be sent to every expert


def make_ready(model: PreTrainedModel | PeftModel, loaded: LoadedModel) -> None:
    """Switch the base's own dropout off, and try what training and its export need; before anything is divided.

    Args:
        model: With exactly its trained parameters trainable.
        loaded: What it was made of.

    Raises:
        ModelError: If the model is random while it learns, a trained parameter has no gradient, or saving fails.
    """
    silence(model)
    if runs_whole(inner_model(model)):
        refuse_random(model)
        refuse_unreached(model)
    else:
        logger.warning(
            "whether the model is random while it learns, and whether all that is trained gets a gradient, cannot be "
            "tried: its weights were divided among the ranks before. Fix: give the model by its path or hub id"
        )
    try_saving(model, loaded.tokenizer, loaded.source)
    if parts := other_parts(inner_model(model)):
        logger.info(f"only the language model is trained, on texts: {', '.join(parts)} stay as they are")
    if isinstance(model, PeftModel):
        logger.info(describe_reach(model))
    elif model.dtype != loaded.stored_dtype:
        held, stored = (str(dtype).removeprefix("torch.") for dtype in (model.dtype, loaded.stored_dtype))
        logger.info(
            f"the base's files are {stored}; it is trained and exported in {held} (sdft export --dtype {stored})"
        )


def refuse_unreached(model: PreTrainedModel | PeftModel) -> None:
    """Refuse a trained parameter that the loss gives no gradient: it would stay as it is, and nobody would know.

    One backward over a made-up text tells. Of an adapter's two matrices one starts at zero, so one has a gradient;
    whatever else is trained beside it has one of its own.

    Raises:
        ModelError: Naming the first.
    """
    missing: list[str] = []
    for length in _LENGTHS:
        missing = _without_gradient(model, length)
        if not missing:
            return
    raise ModelError(_unreached(model, missing))


def _unreached(model: PreTrainedModel | PeftModel, missing: list[str]) -> str:
    """Name the modules whose parameters get no gradient, the option that named them, and what to name instead."""
    modules = sorted({_adapter(name).removeprefix("base_model.model.") for name in missing})
    text = f"{len(missing)} trained parameters get no gradient from the loss and would never learn"
    if not isinstance(model, PeftModel):
        return f"{text}, of {some(missing)}. Fix: --lora.enabled true."
    if not all(".lora_" in name for name in missing):
        other = "lora.modules_to_save" if "modules_to_save" in missing[0] else "lora.trainable_token_indices"
        return f"{text}, those of {some(modules)} ({other}). Fix: leave these out of {other}."
    unfit = [name.removesuffix(".base_layer") for name in modules]
    fix = fix_naming(adapted_layers(model), unfit)
    return f"{text}, those of the adapters on {some(unfit)} (lora.target_modules). {fix}"


def _without_gradient(model: nn.Module, length: int) -> list[str]:
    inner: PreTrainedModel = inner_model(model)  # type: ignore[arg-type]  # as it came
    is_peft = isinstance(model, PeftModel)
    weight = embedding_weight(inner)
    window = getattr(inner.config.get_text_config(), "max_position_embeddings", None) or length
    made_up = [(12_345 + 7_919 * i) % len(weight) for i in range(length)]
    text = [i for i in trained_rows(inner) if i < len(weight)] + made_up  # rows that no text has get no gradient
    ids = torch.tensor(text[:window], device=weight.device)
    seen: set[str] = set()  # parameters with a gradient, zero or not
    learns: set[str] = set()  # adapters, copies and rows with one that is not zero

    def note(name: str, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        seen.add(name)
        if parameter.grad.count_nonzero():
            learns.add(_adapter(name))
        parameter.grad = None  # one parameter's gradient at a time: there may be no memory for all

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    handles = [
        p.register_post_accumulate_grad_hook(lambda each, name=name: note(name, each)) for name, p in trained.items()
    ]
    devices = [weight.device] if weight.device.type == "cuda" else []
    try:
        with keeping_modes(model), torch.random.fork_rng(devices=devices), torch.enable_grad():
            model.train()
            hidden = body(inner)(input_ids=ids[None], use_cache=False).last_hidden_state[0]
            head = head_of(inner)
            F.cross_entropy(head.logits(hidden[:-1].to(head.weight_VD.dtype)), ids[1:]).backward()
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in trained if name not in seen or (is_peft and _adapter(name) not in learns)]


def _adapter(name: str) -> str:
    """Return what a parameter learns with: its adapter, or nothing but itself."""
    return name if "lora_magnitude_vector" in name else name.partition(".lora_")[0]
