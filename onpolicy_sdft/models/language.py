"""The language model inside a model that sees pictures too: what texts pass, and what they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def class_for(config: PreTrainedConfig) -> Any:
    """Return the class of transformers that loads a model for text: with its vision tower, where it has one."""
    sees = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def other_parts(model: PreTrainedModel) -> list[str]:
    """Return the topmost modules with weights that no text passes, by name: vision towers, projectors of pictures."""
    if model.config.get_text_config() is model.config or model.get_decoder() is None:
        return []
    modules = dict(model.named_modules())
    read = {name for name, each in modules.items() if each in (model.get_decoder(), model.get_output_embeddings())}

    def outside(name: str) -> bool:
        return not any(
            name == each or f"{each}.".startswith(f"{name}.") or name.startswith(f"{each}.") for each in read
        )

    found: list[str] = []
    for name, module in modules.items():
        inside_one = any(name.startswith(f"{part}.") for part in found)
        if name and not inside_one and outside(name) and any(True for _ in module.parameters()):
            found.append(name)
    return found
