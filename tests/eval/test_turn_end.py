from __future__ import annotations

import math

import pytest
import torch

from onpolicy_sdft.config.schema import ContextConfig
from onpolicy_sdft.data.prepare import prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.eval.turn_end import describe_turn_end, turn_end_probability
from onpolicy_sdft.types import Demonstration, Turn


def test_the_probability_is_that_of_a_plain_forward_at_the_end_of_each_demonstration(tiny_model, tokenizer):
    model, config = tiny_model().eval(), ContextConfig()
    rows = [Demonstration(str(i), (Turn("user", f"say {i}"),), "abc"[: i + 1]) for i in range(3)]
    pairs = prepare(rows, Renderer(tokenizer, config), config, 0).pairs
    logprobs = []
    for pair in pairs:
        ids = torch.tensor([[*pair.student_ids, *pair.response_ids]])
        logprobs.append(model(input_ids=ids).logits[0, -2].log_softmax(-1)[tokenizer.eos_token_id].item())
    expected = math.exp(sum(logprobs) / 3)
    assert turn_end_probability(model, pairs) == pytest.approx(expected, rel=1e-4)


def test_a_turn_end_that_was_never_trained_is_warned_of_with_ways_out():
    assert describe_turn_end(0.3, "<|im_end|>", 8, adapters=True) == (
        "the model ends its turn (<|im_end|>) after 8 demonstrations with probability 0.3"
    )
    warning = describe_turn_end(5e-8, "<|im_end|>", 8, adapters=True)
    assert warning.startswith("the model ends its turn (<|im_end|>) after 8 demonstrations with probability 5e-08: ")
    assert "--lora.enabled false" in warning
    assert "--lora.enabled" not in describe_turn_end(5e-8, "<|im_end|>", 8, adapters=False)
