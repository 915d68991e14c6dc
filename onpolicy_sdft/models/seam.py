"""The seam through which attention is replaced: rollouts attend over slots, learning over packed rows.

A function is registered with transformers' ``AttentionInterface`` once and does nothing of its own; what it works on
travels through the model's keyword arguments. Which models take that is read off their config here, and then tried
(``trial.py``, ``rollout/support.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import AttentionInterface, PreTrainedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_MOVING_ROPES = {"dynamic", "longrope"}  # their frequencies depend on the longest position of the batch
#: Keywords of an attention call that say nothing about which key a query sees or how scores are made.
_HARMLESS = {
    "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "return_dict",
    "position_embeddings", "past_key_values", "input_ids", "inputs_embeds",
}  # fmt: skip


class UnsupportedModel(Exception):
    """A model's attention cannot be replaced; the text says why."""


@contextlib.contextmanager
def attention_through(model: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Send a model's attention to a function for the length of the context.

    Args:
        model: Or whatever it is wrapped in.
        name: Of the function, for transformers.
        function: As ``AttentionInterface`` calls it.
    """
    if name not in AttentionInterface._global_mapping:
        AttentionInterface.register(name, function)
    modules: Iterator[Any] = model.modules()
    configs = {id(m.config): m.config for m in modules if isinstance(getattr(m, "config", None), PreTrainedConfig)}
    own = {key: config._attn_implementation_internal for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = own[key]


def refuse_unknown(
    module: nn.Module, attention_mask: Any, dropout: float, is_causal: bool | None, others: dict[str, Any]
) -> None:
    """Refuse a layer's call of its attention if it asks for something that is not known here.

    Raises:
        UnsupportedModel: With what it asks for.
    """
    unknown = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
    if unknown:
        raise UnsupportedModel(f"its attention passes {', '.join(unknown)}, which is not known here")
    if attention_mask is not None:
        raise UnsupportedModel("it makes an attention mask of its own")
    if dropout or is_causal is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedModel("its attention is not causal, or drops out")


def refuse_by_config(model: PreTrainedModel) -> None:
    """Refuse a model whose config says that its attention cannot be replaced.

    Raises:
        UnsupportedModel: With the reason.
    """
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel("it does not take its attention from AttentionInterface")
    if getattr(model, "_is_stateful", False) or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel("it is recurrent or an encoder-decoder: there is no position to go back to")
    others = sorted({str(kind) for kind in getattr(config, "layer_types", None) or ()} - _LAYER_TYPES)
    if others:
        raise UnsupportedModel(f"it has layers of type {', '.join(others)}")
    moving = sorted(_MOVING_ROPES & set(_rope_types(config)))
    if moving:
        raise UnsupportedModel(f"its rope type {moving[0]} depends on the longest text of a batch")


def wrong_window(config: Any, windows: list[int]) -> str:
    """Say which layer passes another window than its config names; a long one shows in no short text.

    Args:
        config: Of the text model.
        windows: What each layer passed, 0 for none.
    """
    window = getattr(config, "sliding_window", None) or 0
    one_kind = "sliding_attention" if window else "full_attention"
    kinds = getattr(config, "layer_types", None) or [one_kind] * len(windows)
    for layer, kind in enumerate(kinds[: len(windows)]):
        expected = window if kind == "sliding_attention" else 0
        if windows[layer] != expected:
            return f"layer {layer} ({kind}) passes a window of {windows[layer]}, its config says {expected}"
    return ""


def _rope_types(config: Any) -> Iterator[str]:
    waiting = [getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield str(item.get("rope_type", item.get("type", "default")))
            waiting += item.values()
