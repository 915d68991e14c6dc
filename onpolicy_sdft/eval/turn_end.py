"""How likely a model ends its turn where a demonstration ends; adapters cannot teach it a token it never saw."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.randomness import runs_whole

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.build.bundle import ModelBundle
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.types import PromptPair

logger = logging.getLogger(__name__)

#: Below this probability the token was hardly trained: chat models give 0.01 to 1, base models 1e-7.
RARELY_ENDS = 1e-4
_NUM_ROWS = 8


def report_turn_end(
    config: RunConfig, bundle: ModelBundle, pairs: Sequence[PromptPair], device: torch.device | None = None
) -> None:
    """Say how likely the model ends its turn where a demonstration ends.

    Args:
        config: Of the run.
        bundle: Its model.
        pairs: Its demonstrations; the first few are tried.
        device: Where the model computes in the run; None: where it is. Weights that are elsewhere wait to be divided.
    """
    model = bundle.loaded.model
    if not runs_whole(inner_model(model)) or model.device.type != (device or model.device).type:
        logger.info("how likely the model ends its turn is not tried where weights are divided: sdft probe says it")
        return
    learned = [each for each in pairs[:_NUM_ROWS] if each.demonstration.response and each.response_ids]
    rows = [each for each in learned if each.response_ids[-1] == bundle.renderer.terminator_id]
    if not rows:
        return
    name = str(bundle.loaded.tokenizer.convert_ids_to_tokens(bundle.renderer.terminator_id))
    # As it learns: some attention kernels take no float32.
    with torch.autocast(model.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        probability = turn_end_probability(model, rows)
    level = logging.WARNING if probability < RARELY_ENDS else logging.INFO
    logger.log(level, describe_turn_end(probability, name, len(rows), adapters=config.lora.enabled))


@torch.no_grad()
def turn_end_probability(model: PreTrainedModel | PeftModel, pairs: Sequence[PromptPair]) -> float:
    """Return p(what ends the answer | bare prompt, demonstration), as the geometric mean over demonstrations.

    Args:
        model: In evaluation mode, on its device; a few forwards of one row each.
        pairs: A few demonstrations.
    """
    logprobs = []
    for pair in pairs:
        *before, end = (*pair.student_ids, *pair.response_ids)
        logits_V = model(input_ids=torch.tensor([before], device=model.device), logits_to_keep=1).logits[0, -1]
        logprobs.append(float(torch.log_softmax(logits_V.float(), dim=-1)[end]))
    return math.exp(sum(logprobs) / len(logprobs))


def describe_turn_end(probability: float, name: str, num_rows: int, *, adapters: bool) -> str:
    """Return a line about it for the preflight, with the way out where the model would not stop.

    Args:
        probability: Of :func:`turn_end_probability`.
        name: The token that ends answers.
        num_rows: Demonstrations it was measured on.
        adapters: Whether adapters are trained, which change no embedding.
    """
    line = f"the model ends its turn ({name}) after {num_rows} demonstrations with probability {probability:.2g}"
    if probability >= RARELY_ENDS:
        return line
    line = f"{line}: it hardly knows this token, so its rollouts run to rollout.max_new_tokens"
    if not adapters:
        return f"{line} until it has learned it. Fix: a chat template that ends answers with a token it knows."
    return (
        f"{line}, and adapters may never teach it. Fix: a chat template that ends answers with a token it knows "
        "(its end-of-text token), or training all weights (--lora.enabled false)."
    )
