"""While a model learns nothing is random but ``lora_dropout``: its own dropout is off, and that is tried.

Rollouts are sampled without dropout, so learning with it would train another distribution than was sampled. A model
drops out in modules, in functions that read a module's number or its config, and by other names (router jitter,
layer drop). All of these are set to 0, and then two forwards in training mode must agree in every bit.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from onpolicy_sdft.errors import ModelError
from onpolicy_sdft.models.lora import embedding_weight, inner_model
from onpolicy_sdft.models.modes import keeping_modes
from onpolicy_sdft.models.policy import body
from onpolicy_sdft.models.trial import texts

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_RANDOM = re.compile("drop|jitter")  # attention_dropout, attn_pdrop, layerdrop, router_jitter_noise, ...
_LORA = "lora_"
_KEPT = "_onpolicy_sdft_own_dropout"  # on the model: what its config said


def silence(model: PreTrainedModel | PeftModel) -> None:
    """Set every dropout of the base to 0, and nothing else."""
    for name, module in model.named_modules():
        if _LORA in name:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for key in _random_numbers(vars(module)):
            setattr(module, key, 0.0)
    inner = inner_model(model)
    own: dict[str, dict[str, float]] = getattr(inner, _KEPT, {})
    for place, config in _configs(inner).items():
        numbers = _random_numbers(vars(config))
        own.setdefault(place, {}).update(numbers)
        for key in numbers:
            setattr(config, key, 0.0)
    setattr(inner, _KEPT, own)


@contextlib.contextmanager
def own_dropout(model: PreTrainedModel) -> Iterator[None]:
    """Let a model's config say what it said before :func:`silence`: so it is exported."""
    configs, own = _configs(model), getattr(model, _KEPT, {})
    try:
        for place, numbers in own.items():
            vars(configs[place]).update(numbers)
        yield
    finally:
        for place, numbers in own.items():
            vars(configs[place]).update(dict.fromkeys(numbers, 0.0))


def refuse_random(model: PreTrainedModel | PeftModel) -> None:
    """Refuse a model whose forwards in training mode differ, with ``lora_dropout`` off, or give no numbers.

    On a GPU sums may be taken in any order: there forwards that differ with equal seeds as well are no news.

    Raises:
        ModelError: Naming the first module that differs, or whose output is no number.
    """
    inner = inner_model(model)
    with _learning_without_lora_dropout(model):
        first = _outputs(inner, 0)
        _refuse_no_numbers(inner, first)
        second = _outputs(inner, 1)
        name = next((name for name in first if not _equal(first[name], second.get(name))), None)
        if name is None:
            return
        again = _outputs(inner, 0)
    if embedding_weight(inner).device.type != "cpu" and not _equal(first[name], again[name]):
        return
    module = dict(inner.named_modules())[name]
    raise ModelError(
        f"{type(inner).__name__} gives other numbers at every forward while it learns, and no rate of it is called "
        f"dropout or jitter: the first output that differs is that of {name or 'the model'} ({type(module).__name__}). "
        "Fix: switch the noise off in the model's config.json, or take another model."
    )


def _refuse_no_numbers(model: PreTrainedModel, outputs: dict[str, torch.Tensor]) -> None:
    if bool(outputs[""].isfinite().all()):
        return
    name = next(name for name, output in outputs.items() if not output.isfinite().all())
    raise ModelError(
        f"{type(model).__name__} computes NaN or infinite numbers from a short text, first in {name or 'the model'} "
        f"({type(dict(model.named_modules())[name]).__name__}): its weights are damaged, or numbers outgrow their "
        "dtype. Fix: copy or download its files again, or --model.dtype float32 --train.precision fp32."
    )


def runs_whole(model: PreTrainedModel) -> bool:
    """Whether weights are here to be run; those that were divided when they were loaded are not."""
    weight = embedding_weight(model)
    return bool(weight.numel()) and not weight.is_meta


@contextlib.contextmanager
def _learning_without_lora_dropout(model: nn.Module) -> Iterator[None]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with keeping_modes(model), torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        model.train()
        for name, module in model.named_modules():
            if _LORA in name and isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        yield


def _outputs(model: PreTrainedModel, seed: int) -> dict[str, torch.Tensor]:
    """Return what each module gave last, innermost first, for the texts of a trial."""
    found: dict[str, torch.Tensor] = {}

    def see(name: str, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(tensor, torch.Tensor):
            found.pop(name, None)
            found[name] = tensor.clone()

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: see(name, output))
        for name, module in model.named_modules()
    ]
    try:
        torch.manual_seed(seed)
        ids = texts(model.config.get_text_config().vocab_size)
        text = torch.tensor([[i for each in ids for i in each]], device=embedding_weight(model).device)
        hidden = body(model)(input_ids=text, use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    return {**found, "": hidden}


def _equal(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and bool(torch.equal(one, other))


def _random_numbers(attributes: dict[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in attributes.items()
        if isinstance(value, float) and value > 0 and _RANDOM.search(key) and not key.startswith("__")
    }


def _configs(model: nn.Module) -> dict[str, PreTrainedConfig]:
    """Return every config that modules read, by the first module that holds it."""
    modules: Iterator[tuple[str, Any]] = model.named_modules()
    found: dict[int, tuple[str, PreTrainedConfig]] = {}
    for name, module in modules:
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            found.setdefault(id(config), (name, config))
    return dict(found.values())
