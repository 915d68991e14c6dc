"""Whether transformers' ``generate`` writes what the model would write itself, found out before the first token.

Some models mask padding wrongly, or go on from their cache with other numbers than a forward over the whole text.
A few short texts of different lengths are written in one batch; the hidden states that their last tokens were drawn
from are compared with those of a plain forward over each text alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onpolicy_sdft.errors import ModelError
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.models.trial import how_far_off, own_hidden, texts
from onpolicy_sdft.rollout.hf import CollectiveDecoding, HFBackend
from onpolicy_sdft.types import NoiseKey, RecordOptions, RolloutRequest, SamplingParams

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.rollout.sampling import Vocabulary

logger = logging.getLogger(__name__)

_NUM_TOKENS = 3  # written in the trial: the first is drawn from the prompt's forward, the others through the cache


def hf_backend(
    model: PreTrainedModel | PeftModel,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    batch_size: int,
    merge_adapter: bool,
    together: CollectiveDecoding | None,
    vocabulary: Vocabulary | None = None,
) -> HFBackend:
    """Return the backend over ``generate``, tried: with the batch that is asked for, else of one text at a time.

    Raises:
        ModelError: If texts written alone are wrong as well.
    """
    name = type(inner_model(model)).__name__
    backend = HFBackend(model, stop_token_ids, pad_token_id, batch_size, merge_adapter, together, vocabulary)
    off = how_far_generate_is_off(backend)
    if off and batch_size > 1:
        logger.warning(
            f"transformers' generate is {off:.2g} (relative) off {name}'s own hidden states where texts of "
            "different lengths share a batch: they are written one at a time"
        )
        backend = HFBackend(model, stop_token_ids, pad_token_id, 1, merge_adapter, together, vocabulary)
        off = how_far_generate_is_off(backend)
    if off:
        raise ModelError(
            f"transformers' generate is {off:.2g} (relative) off {name}'s own hidden states, even for one text alone: "
            "what it writes is not what the model would write. Fix: --model.attn_implementation eager, another version "
            "of transformers, or targets that need no rollouts: --train.targets demonstrations."
        )
    return backend


def how_far_generate_is_off(backend: HFBackend) -> float:
    """Return how far hidden states are off a plain forward's, relatively; 0 where rounding explains it."""
    model = inner_model(backend.model)
    prompts = texts(model.config.get_text_config().vocab_size)
    requests = [RolloutRequest(text, NoiseKey(0, 0, str(row)), _NUM_TOKENS) for row, text in enumerate(prompts)]
    rollouts = backend.generate(requests, SamplingParams(temperature=0.0), record=RecordOptions(hidden=True))
    written = [each.prompt_token_ids + each.token_ids[:-1] for each in rollouts]
    found = [each.hidden[-1] for each in rollouts if each.hidden is not None]

    def compare() -> float:
        return how_far_off(model, written, found, [own_hidden(model, text) for text in written])

    with no_trace(backend.model), backend.weights.open():
        return compare() if backend.together is None else backend.together.inside(compare)
