"""What is trained beside low-rank adapters: whole modules, and single rows of embeddings.

Shape letters: R trained rows, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn

from onpolicy_sdft.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from onpolicy_sdft.config.schema import LoraConfig


def refuse_unfit(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Refuse what cannot be trained beside adapters, before any are put on.

    Args:
        model: Without adapters.
        lora: As asked.

    Raises:
        ConfigError: If a name matches nothing, or a copy would be trained in less than float32.
    """
    _refuse_unmatched("modules_to_save", lora.modules_to_save, [name for name, _ in model.named_modules()])
    _refuse_unmatched("target_parameters", lora.target_parameters, [name for name, _ in model.named_parameters()])
    if isinstance(lora.trainable_token_indices, dict):
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding | nn.Linear)]
        _refuse_unmatched("trainable_token_indices", list(lora.trainable_token_indices), layers)
    narrow = {model.dtype} - {torch.float32, torch.float64}
    if lora.modules_to_save and narrow:
        raise ConfigError(
            f"lora.modules_to_save={lora.modules_to_save!r} trains copies of {narrow.pop()} weights: most updates "
            "would be lost to rounding. Fix: --model.dtype float32 (with --train.precision bf16 for speed), or rows "
            "alone: lora.trainable_token_indices."
        )


def _refuse_unmatched(option: str, asked: Sequence[str], names: Sequence[str]) -> None:
    for name in asked:
        if not any(each == name or each.endswith(f".{name}") for each in names):
            last = sorted({each.rpartition(".")[2] for each in names} - {""})
            hint = did_you_mean(name.rpartition(".")[2], last, cutoff=0.5) or f" There are {', '.join(last)}."
            raise ConfigError(
                f"lora.{option}={list(asked)!r}: {name!r} matches nothing in the model.{hint} Fix: correct the "
                "name or leave it out."
            )


def shares_head(model: PreTrainedModel) -> bool:
    """Whether the output layer reads the embedding's weight."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def ties_copies(model: PreTrainedModel, lora: LoraConfig) -> bool:
    """Whether the copies of embedding and output layer have to stay one weight, as theirs is."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if module in ends]
    asked = lora.modules_to_save
    return shares_head(model) and any(name.endswith(each) for name in names for each in asked)


def token_rows(
    model: PreTrainedModel, lora: LoraConfig, tokenizer: PreTrainedTokenizerBase | None
) -> list[int] | dict[str, list[int]] | None:
    """Return the ids of the rows that are trained, as PEFT takes them; None where there are none.

    Args:
        model: Without adapters.
        lora: As asked, with ids or texts.
        tokenizer: Knows the ids of texts.

    Raises:
        ConfigError: If a text is not one token, an id has no row, or a layer cannot have rows of its own.
    """
    asked = lora.trainable_token_indices
    if not asked:
        return None
    modules: dict[str, Any] = dict(model.named_modules())
    if not isinstance(asked, dict):
        return _ids(asked, tokenizer, model.get_input_embeddings())
    found = {}
    for name, tokens in asked.items():
        layer = next(module for each, module in modules.items() if each == name or each.endswith(f".{name}"))
        if getattr(layer, "bias", None) is not None:
            raise ConfigError(
                f"lora.trainable_token_indices names {name!r}, which has a bias: PEFT would leave it out of the "
                "logits. Fix: leave that layer out, or --lora.modules_to_save for all of it."
            )
        if layer is model.get_output_embeddings() and shares_head(model):
            raise ConfigError(
                f"lora.trainable_token_indices names {name!r}, whose weight is the embedding's: its rows follow. Fix: "
                "leave that layer out."
            )
        found[name] = _ids(tokens, tokenizer, layer)
    return found


def _ids(tokens: Sequence[int | str], tokenizer: PreTrainedTokenizerBase | None, layer: Any) -> list[int]:
    num_rows, found = layer.weight.shape[0], set[int]()
    for token in tokens:
        index = token if isinstance(token, int) else _id_of(token, tokenizer)
        if not 0 <= index < num_rows:
            raise ConfigError(
                f"lora.trainable_token_indices names {token!r}, and the layer has rows 0 to {num_rows - 1}. Fix: "
                "another id, or resize the embedding once and save: model.resize_token_embeddings(...)."
            )
        found.add(index)
    return sorted(found)


def _id_of(text: str, tokenizer: PreTrainedTokenizerBase | None) -> int:
    if tokenizer is None:
        raise ConfigError(f"lora.trainable_token_indices names {text!r}, and there is no tokenizer. Fix: give its id.")
    known = tokenizer.get_vocab().get(text)
    if known is not None:
        return int(known)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigError(
            f"lora.trainable_token_indices names {text!r}, which is {len(ids)} tokens ({ids}). Fix: name one token, or "
            "add it to the tokenizer and the embedding and save both."
        )
    return int(ids[0])


def refuse_untied(model: nn.Module) -> None:
    """Refuse a copy of a module whose weight another module has as well: a merged export could not hold both.

    Args:
        model: The base, with what PEFT put around its modules.

    Raises:
        ConfigError: Naming it.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, wrapper in model.named_modules():
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        (copy,) = wrapper.modules_to_save.values()
        pairs = zip(wrapper.original_module.parameters(), copy.parameters(), strict=True)
        if any(owners[id(own)] != owners[id(trained)] for own, trained in pairs):
            raise ConfigError(
                f"lora.modules_to_save names {name!r}, whose weight another module has as well: a merged export could "
                "not hold both. Fix: leave it out, or --lora.enabled false."
            )


def trained_beside(model: nn.Module) -> dict[str, str]:
    """Return what is trained beside the adapters by the module's name, in words."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            found[name] = "trained whole"
        elif isinstance(module, TrainableTokensWrapper) and not module.token_adapter.tied_adapter:
            (ids,) = module.token_adapter.token_indices.values()
            found[name] = f"{len(ids)} rows trained"
    return found


def trained_rows(model: nn.Module) -> list[int]:
    """Return the ids whose rows are trained, in any layer."""
    wrappers = [module for module in model.modules() if isinstance(module, TrainableTokensWrapper)]
    return sorted({i for each in wrappers for ids in each.token_adapter.token_indices.values() for i in ids})


def unread_modules(model: nn.Module) -> set[nn.Module]:
    """Return the modules that nothing reads now: originals beside copies, or the copies while adapters are off."""
    found: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            unread = module.modules_to_save if module.disable_adapters else module.original_module
            found |= set(unread.modules())
    return found


@contextlib.contextmanager
def rows_in_place(model: nn.Module) -> Iterator[None]:
    """Hold trained rows in the weight they belong to, so that layers read them at no cost; then put its own back.

    PEFT would copy the whole weight at every look. For whoever computes without gradients.
    """
    wrappers = [module for module in model.modules() if isinstance(module, TrainableTokensWrapper)]
    with contextlib.ExitStack() as stack:
        for wrapper in wrappers:
            adapter: Any = wrapper.token_adapter
            if wrapper.disable_adapters:
                continue
            for part in (wrapper, adapter):
                stack.callback(setattr, part, "_disable_adapters", part._disable_adapters)
                part._disable_adapters = True
            if adapter.tied_adapter:  # the same weight, which has them by now or will have
                continue
            weight: torch.Tensor = adapter.get_base_layer().weight.data
            for name in adapter.active_adapters:
                ids_R = torch.tensor(adapter.token_indices[name], device=weight.device)
                stack.callback(weight.index_copy_, 0, ids_R, weight[ids_R])
                weight.index_copy_(0, ids_R, adapter.trainable_tokens_delta[name].data.to(weight))
        yield
