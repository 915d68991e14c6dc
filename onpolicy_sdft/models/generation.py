"""The generation config that goes with the model: it ends answers where the run ends them, and it can be saved.

transformers refuses to save a config with settings that do nothing (a temperature without sampling), in some
versions always and in others once it was changed; that must not come up after training.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import GenerationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

#: Settings that do nothing unless another one is on: they may go, and transformers wants them gone.
_OF_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
_OF_BEAMS = ("early_stopping", "length_penalty")
_OF_CACHE = ("cache_implementation", "cache_config")
_OF_DICT = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def settle_generation(model: PreTrainedModel, stop_tokens: Sequence[int]) -> None:
    """Give a model a generation config that stops where the run does and that any export can save.

    Args:
        model: Its generation config is replaced by a copy.
        stop_tokens: Ids that end an answer; those the config has come first, in their order.
    """
    own = model.generation_config
    config = GenerationConfig() if own is None else copy.deepcopy(own)
    named = listed_ids(config.eos_token_id)
    ends = [*named, *(token for token in stop_tokens if token not in named)]
    if ends != named:
        config.eos_token_id = ends[0] if len(ends) == 1 else ends
    dropped = _drop_idle(config)
    try:
        config.validate(strict=True)
    except ValueError as error:
        tokens = {name: getattr(config, name) for name in _TOKENS}
        said = " ".join(str(error).split())
        logger.warning(f"the model's generation config cannot be saved ({said}): exports have its token ids only")
        config, dropped = GenerationConfig(**tokens), []
    if dropped:
        logger.info(f"the generation config's {', '.join(dropped)} do nothing there and are left out of exports")
    model.generation_config = config


def listed_ids(ids: int | Sequence[int] | None) -> list[int]:
    """Return ids that a config gives as one number, a list or not at all."""
    if ids is None:
        return []
    return [int(i) for i in ids] if isinstance(ids, Sequence) else [int(ids)]


def _drop_idle(config: GenerationConfig) -> list[str]:
    """Put settings that do nothing back to their defaults; return them as ``name=value``."""
    idle: list[str] = []
    if config.do_sample is not True:
        idle += _OF_SAMPLING
    if config.num_beams in (None, 1):
        idle += _OF_BEAMS
    if config.use_cache is False:
        idle += _OF_CACHE
    if config.return_dict_in_generate is not True:
        idle += _OF_DICT
    if config.pad_token_id is not None and config.pad_token_id < 0:
        idle.append("pad_token_id")
    blank, dropped = GenerationConfig(), []
    for name in idle:
        value, default = getattr(config, name, None), getattr(blank, name, None)
        if value is None or value is False or value == default:
            continue
        setattr(config, name, default)
        dropped.append(f"{name}={value}")
    return dropped
