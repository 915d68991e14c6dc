"""What adapters reach: names without a layer, layers whose adapters would not learn or merge, and what stays frozen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from onpolicy_sdft.errors import ConfigError, did_you_mean
from onpolicy_sdft.models.beside import trained_beside

if TYPE_CHECKING:
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.config.schema import LoraConfig

_MOST_NAMES = 24  # in a message


def misspelt(lora: LoraConfig, peft_config: PeftLoraConfig, names: Sequence[str]) -> str:
    """Say which listed name matches no layer, with the nearest that does; empty: none.

    Args:
        lora: As asked.
        peft_config: After it was applied: names of experts' layers were turned into parameters there.
        names: Of the model's modules before.
    """
    if isinstance(lora.target_modules, str):
        return ""
    left = peft_config.target_modules or ()
    wrong = [
        asked
        for asked in lora.target_modules
        if asked in left and not any(name == asked or name.endswith(f".{asked}") for name in names)
    ]
    if not wrong:
        return ""
    last = sorted({name.rpartition(".")[2] for name in names} - {""})
    hint = did_you_mean(wrong[0].rpartition(".")[2], last, cutoff=0.5) or f" Its modules are called {', '.join(last)}."
    return (
        f"lora.target_modules={lora.target_modules!r}: {wrong[0]!r} matches no module of the model.{hint} "
        "Fix: correct the name or leave it out; all-linear takes every linear layer but the head."
    )


def why_not(lora: LoraConfig, error: Exception, linear: Sequence[str]) -> str:
    """Put what peft refused into words that name the option.

    Args:
        lora: As asked.
        error: As PEFT raised it.
        linear: Names of the model's linear layers but the head.
    """
    if lora.use_dora and "dora" in str(error).lower():
        return (
            f"lora.use_dora=true: adapters on parameters that are no linear layer's, as the experts of a mixture, have "
            f"no such form ({error}). Fix: --lora.use_dora false, or name the attention's layers alone: "
            "--lora.target_modules \"['q_proj', 'k_proj', 'v_proj', 'o_proj']\"."
        )
    if "modules_to_save" in str(error):
        return f"lora.modules_to_save={lora.modules_to_save!r}: {error}. Fix: name modules without adapters."
    if "lora_dropout" in str(error):
        return (
            f"lora.dropout={lora.dropout}: adapters on the experts of a mixture cannot drop out ({error}). Fix: "
            "--lora.dropout 0, or name the attention's layers alone: --lora.target_modules "
            "\"['q_proj', 'k_proj', 'v_proj', 'o_proj']\"."
        )
    said = " ".join(str(error).split()).rstrip(".")
    if "Incompatible modules" in said:  # of Mamba, whose kernels read these weights as they are
        unfit = set(re.findall(r"'(\w+)'", said.partition("Incompatible modules")[2].partition("}")[0]))
        taken = [name for name in linear if name.rpartition(".")[2] not in unfit]
        named = ", ".join(sorted(unfit))
        return (
            f"lora.target_modules={lora.target_modules!r}: {named} of a Mamba model take no adapters. "
            f"{fix_naming(taken, [])}"
        )
    if "target" not in said and "linear" not in said:
        return (
            f"PEFT puts no adapters on the model: {said}. Fix: mend the option of lora that it means, or leave it out."
        )
    fix = "Fix: name linear layers, or all-linear."
    if lora.target_modules == "all-linear":
        fix = fix_naming(linear, [])
    elif isinstance(lora.target_modules, str):
        fix = (
            f"Fix: a text is a regular expression for whole names; list a layer's name: \"['{lora.target_modules}']\"."
        )
    return f"lora.target_modules={lora.target_modules!r}: {said}. {fix}"


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear layers that all-linear means: of a model without adapters, not its head."""
    head = model.get_output_embeddings()
    layers: Iterator[tuple[str, Any]] = model.named_modules()
    return [name for name, layer in layers if isinstance(layer, nn.Linear | Conv1D) and layer is not head]


def fix_naming(taken: Sequence[str], unfit: Sequence[str]) -> str:
    """Return the way out that names modules for adapters: the shortest names that match none of the unfit ones."""

    def short(name: str) -> str:
        parts = name.split(".")
        for first in range(len(parts) - 1, -1, -1):
            end = ".".join(parts[first:])
            if not any(f".{other}".endswith(f".{end}") for other in unfit):
                return end
        return name

    ends = sorted({short(name) for name in taken if name not in unfit})
    if not ends or len(ends) > _MOST_NAMES:
        return "Fix: --lora.enabled false, or another model."
    listed = ", ".join(f"'{end}'" for end in ends)
    return f'Fix: --lora.target_modules "[{listed}]", or --lora.enabled false.'


def adapted_layers(model: PeftModel) -> list[str]:
    """Return the names of the base's modules that carry adapters."""
    return [name for name, module in _base(model).named_modules() if isinstance(module, LoraLayer)]


def refuse_head(model: PeftModel, lora: LoraConfig) -> None:
    """Refuse adapters on the output layer: the loss reads its weight as it is, so they would never learn.

    Raises:
        ConfigError: Naming it.
    """
    head = model.get_output_embeddings()
    for name, layer in _adapters(model):
        if layer is head:
            raise ConfigError(
                f"lora.target_modules={lora.target_modules!r} names the output layer {name!r}, whose adapters the loss "
                "does not reach: they would learn nothing. Fix: leave it out, or --lora.enabled false."
            )


def refuse_shared(model: PeftModel, lora: LoraConfig) -> None:
    """Refuse an adapter on a weight that another layer has as well: merging would change both.

    Raises:
        ConfigError: Naming both layers.
    """
    owners: dict[int, list[str]] = {}
    for name, module in _base(model).named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name.replace(".base_layer", ""))
    for name, layer in _adapters(model):
        shared = owners[id(_weight(layer))]
        if len(shared) > 1:
            other = next(each for each in shared if each != name)
            raise ConfigError(
                f"lora.target_modules={lora.target_modules!r} names {name!r}, whose weight is that of {other!r} too "
                "(tied): a merged export would change both, and be another model than was trained. Fix: leave it out, "
                "or --lora.enabled false."
            )


def adapted_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that carry adapters."""
    return [_weight(module) for module in model.modules() if isinstance(module, LoraLayer)]


def describe_reach(model: PeftModel) -> str:
    """Say in one line what is trained, and which share of the weights stays frozen for want of adapters."""
    reached = sorted({name.rpartition(".")[2] for name, _ in _adapters(model)})
    adapted = {id(weight) for weight in adapted_weights(model)}
    frozen: dict[str, int] = {}
    total = 0
    for name, parameter in _base(model).named_parameters():
        if parameter.requires_grad:
            continue
        total += parameter.numel()
        if id(parameter) not in adapted and ".original_module." not in name:
            kind = _kind(name.replace(".base_layer", ""), parameter, model)
            frozen[kind] = frozen.get(kind, 0) + parameter.numel()
    experts = frozen.pop("experts", 0)
    parts = sorted(frozen.items(), key=lambda part: -part[1])
    said = ", ".join(f"{kind} {100 * count / total:.2g} %" for kind, count in parts if count / total >= 0.005)
    lines = [f"adapters on {', '.join(reached)}" if reached else ""]
    lines += [f"{name}: {how}" for name, how in trained_beside(_base(model)).items()]
    lines += [f"frozen without adapters: {said} of the weights" if said else ""]
    lines += [f"{100 * experts / total:.2g} % of the weights are frozen experts" if experts else ""]
    return "; ".join(line for line in lines if line)


def _kind(name: str, parameter: nn.Parameter, model: PeftModel) -> str:
    if parameter is _own_weight(model.get_input_embeddings()):
        return "embedding"
    if parameter is _own_weight(model.get_output_embeddings()):
        return "head"
    if "experts" in name.split("."):
        return "experts"
    return "linear layers" if parameter.ndim > 1 else "norms and biases"


def _own_weight(end: Any) -> Any:
    """Return the weight of the base's embedding or head, whatever PEFT put around it."""
    return getattr(getattr(end, "original_module", end), "weight", None)


def _base(model: PeftModel) -> nn.Module:
    base: nn.Module = model.get_base_model()
    return base


def _adapters(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """Yield each layer with an adapter and its name; of an expert's parameter that is the name of the parameter."""
    for name, module in _base(model).named_modules():
        if isinstance(module, LoraLayer):
            part = getattr(module, "parameter_name", None)
            name = name.replace(".base_layer", "")
            yield (f"{name}.{part}" if part else name), module


def _weight(layer: Any) -> nn.Parameter:
    weight: nn.Parameter = layer.get_param() if hasattr(layer, "get_param") else layer.get_base_layer().weight
    return weight
