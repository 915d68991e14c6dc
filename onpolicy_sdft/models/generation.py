"""The generation config that goes with the model: it answers as the run's scores were taken, and it can be saved.

A run answers with the model's own distribution, and ends answers at its stop tokens. Settings that change greedy text
(a repetition penalty, beams) are left out, so that ``generate`` answers as was scored. transformers refuses to save a
config with settings that do nothing (a temperature without sampling), in some versions always and in others once it
was changed; that must not come up after training.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
#: Settings that change greedy text or its end, with the values that do not.
_OF_TEXT: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,), "no_repeat_ngram_size": (0,), "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,), "bad_words_ids": ([],), "sequence_bias": ([], {}), "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],), "forced_bos_token_id": (), "forced_eos_token_id": (), "min_length": (0,),
    "min_new_tokens": (0,), "exponential_decay_length_penalty": (), "stop_strings": ([], ""), "max_time": (),
    "guidance_scale": (1,), "watermarking_config": (), "penalty_alpha": (0,), "dola_layers": (),
    "token_healing": (False,), "constraints": ([],), "force_words_ids": ([],), "num_beams": (1,),
    "num_beam_groups": (1,), "diversity_penalty": (0,),
}  # fmt: skip
_LEFT_OUT = "left_out_by_onpolicy_sdft"  # in the config and its file: the settings of the base, for the card
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def settle_generation(model: PreTrainedModel, stop_tokens: Sequence[int]) -> None:
    """Give a model a generation config that answers and stops as the run does, and that any export can save.

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
    found, before = _leave_out(config), left_out(config)
    if found:
        logger.info(
            f"the model's generation config asks for {_listed(found)}: answers here are sampled and scored without, "
            "and exports leave it out, so that generate answers as was scored (to put it back, write it into the "
            "export's generation_config.json)"
        )
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
    if kept := {**before, **found}:
        setattr(config, _LEFT_OUT, kept)
        config._from_model_config = None  # else transformers drops what it does not know when it reads the file
    model.generation_config = config


def left_out(config: GenerationConfig) -> dict[str, Any]:
    """Return the settings of the base that :func:`settle_generation` left out, now or for an earlier export."""
    return dict(getattr(config, _LEFT_OUT, None) or {})


def describe_left_out(config: GenerationConfig) -> str:
    """Return what was left out as ``name=value``; empty: nothing."""
    return _listed(left_out(config))


def _listed(settings: Mapping[str, Any]) -> str:
    values = {name: json.dumps(value) for name, value in settings.items()}
    return ", ".join(f"{name}={value if len(value) <= 60 else value[:60] + ' ...'}" for name, value in values.items())


def _leave_out(config: GenerationConfig) -> dict[str, Any]:
    """Put settings that change greedy text back to their defaults; return them as a file holds them."""
    names = [name for name, idle in _OF_TEXT.items() if getattr(config, name, None) not in (None, *idle)]
    if "num_beams" in names:  # they mean nothing without
        names += [name for name in (*_OF_BEAMS, "num_return_sequences") if getattr(config, name, None) is not None]
    said, blank = json.loads(config.to_json_string(use_diff=False)), GenerationConfig()
    for name in names:
        setattr(config, name, getattr(blank, name, None))
    return {name: said.get(name) for name in names}


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
