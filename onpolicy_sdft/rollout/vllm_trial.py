"""Whether vLLM computes what the model computes, found out before the first rollout.

vLLM has an implementation of its own of every model, and starts with weights that mean nothing. A few short texts are
written with the weights that were handed over; how likely vLLM found their tokens is compared with the model itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onpolicy_sdft.errors import ModelError, SdftError
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.seam import UnsupportedModel
from onpolicy_sdft.models.trial import texts
from onpolicy_sdft.rollout.vllm import VLLMBackend, VLLMOptions
from onpolicy_sdft.rollout.vllm_server import ServerOptions, VLLMServerBackend
from onpolicy_sdft.types import NoiseKey, RolloutRequest, SamplingParams

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.rollout.sampling import Vocabulary
    from onpolicy_sdft.rollout.vllm_base import VLLMBase

logger = logging.getLogger(__name__)

_NUM_TOKENS = 3
_GREEDY = SamplingParams(temperature=0.0)
#: Nats a token that rounding explains. What was not handed over, or means something else, is off by more.
_TOLERANCE = {"float32": 0.02, "bfloat16": 0.3, "float16": 0.1}


def vllm_backend(
    model: PreTrainedModel | PeftModel,
    stop_token_ids: Sequence[int],
    options: VLLMOptions,
    vocabulary: Vocabulary | None = None,
) -> VLLMBackend:
    """Return the backend over vLLM, tried, and say what is lost beside the engine.

    Raises:
        MissingDependencyError: If vLLM is not installed.
        ModelError: If vLLM cannot serve the model, or writes with other numbers than it has.
    """
    name = type(inner_model(model)).__name__
    backend = VLLMBackend(model, stop_token_ids, options, vocabulary)
    try:
        off = how_far_vllm_is_off(backend)
    except SdftError:
        raise
    except Exception as error:  # of vLLM's, or an adapter that cannot be merged
        raise ModelError(
            f"vLLM cannot write with {name} ({type(error).__name__}: {error}). Fix: --rollout.backend engine."
        ) from error
    if not off <= _TOLERANCE[backend.dtype]:
        raise ModelError(
            f"vLLM's log-probabilities are {off:.2g} nats a token off {name}'s own: what it writes is not what the "
            "model would write. Fix: --rollout.backend engine, or another version of vLLM."
        )
    logger.info(
        f"rollouts go through vLLM in {backend.dtype}, off the model's log-probabilities by {off:.1g} nats a token: "
        "weights are handed over before every call. Lost beside the engine: noise keyed by request (a resumed run "
        "draws other rollouts), drafts, rollout.blend"
    )
    return backend


def server_backend(
    model: PreTrainedModel | PeftModel,
    stop_token_ids: Sequence[int],
    options: ServerOptions,
    vocabulary: Vocabulary | None = None,
) -> VLLMServerBackend:
    """Return the backend over a vLLM server, tried, and say what is lost beside the engine.

    Raises:
        ConfigError: If the folder for weights cannot be used.
        ModelError: If the server cannot be used as it was started, or writes with other numbers than the model has.
        TrainingError: If it does not answer, or does not take the weights.
    """
    name = type(inner_model(model)).__name__
    backend = VLLMServerBackend(model, stop_token_ids, options, vocabulary)
    try:
        # The second also tells the log-probabilities that a token was drawn with from those of the whole vocabulary.
        off = max(how_far_vllm_is_off(backend, params) for params in (_GREEDY, SamplingParams(0.5, top_k=4)))
    except UnsupportedModel as error:
        raise ModelError(f"{name} cannot be handed to vLLM: {error}. Fix: --rollout.backend engine.") from error
    if not off <= _TOLERANCE.get(backend.dtype, max(_TOLERANCE.values())):
        raise ModelError(
            f"The log-probabilities of the vLLM server at rollout.server_url={options.url} are {off:.2g} nats a token "
            f"off {name}'s own, in {backend.dtype}: it serves another model, or another run hands weights to it, too. "
            f"Fix: start it with {backend.start}, or --rollout.backend engine."
        )
    logger.info(
        f"rollouts go through the vLLM server at {options.url} in {backend.dtype}, off the model's log-probabilities "
        f"by {off:.1g} nats a token: weights are handed over in {backend.folder} before every call. Lost beside the "
        "engine: tokens that are the same to the bit (rounding depends on what is written together), drafts, "
        "rollout.blend"
    )
    return backend


def how_far_vllm_is_off(backend: VLLMBase, params: SamplingParams = _GREEDY) -> float:
    """Return the mean distance of vLLM's log-probabilities from the model's, in nats a token."""
    prompts = texts(inner_model(backend.model).config.get_text_config().vocab_size)
    requests = [RolloutRequest(text, NoiseKey(0, 0, str(row)), _NUM_TOKENS) for row, text in enumerate(prompts)]
    backend.generate(requests, params)
    mean = backend.stats.mean_mismatch
    assert mean is not None
    return mean
