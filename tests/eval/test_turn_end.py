from __future__ import annotations

import math

import pytest
import torch
from tiny import WORDS, say, write_run
from torch import nn

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.build.bundle import load_bundle
from onpolicy_sdft.config.schema import ContextConfig
from onpolicy_sdft.data.prepare import prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.eval.probe import run_probe
from onpolicy_sdft.eval.turn_end import describe_turn_end, report_turn_end, turn_end_probability
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


@pytest.fixture
def mute(tiny_model, tokenizer, tmp_path):
    """A model that never ends its turn, as a base model that never saw the token."""
    model = tiny_model()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 30.0  # so one direction of the last hidden state never changes its sign
        model.lm_head.weight[tokenizer.eos_token_id] = 0.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = -20.0
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "mute")
    return tmp_path / "mute"


def short_run(folder, model, **options):
    quick = {"train.max_steps": 1, "eval.before_and_after": False, "train.output_dir": folder / "run"}
    return load_config(write_run(folder, model, say(*WORDS[:4]), **quick, **options))


SAID = "the model ends its turn (<|im_end|>) after 4 demonstrations with probability "
WARNED = "it hardly knows this token, so its rollouts run to rollout.max_new_tokens, and adapters may never teach it"


def test_plain_fine_tuning_says_how_likely_a_turn_ends(tmp_path, model_dir, logged):
    fit(short_run(tmp_path, model_dir, **{"train.targets": "demonstrations"}))
    (line,) = (line for line in logged if SAID in line)
    assert line.startswith(SAID)
    assert 1e-4 < float(line.removeprefix(SAID)) < 1


def test_plain_fine_tuning_of_a_model_that_never_ends_its_turn_is_warned_of(tmp_path, mute, logged):
    fit(short_run(tmp_path, mute, **{"train.targets": "demonstrations"}))
    (line,) = (line for line in logged if SAID in line)
    assert line.startswith("warning: ")
    assert WARNED in line


def test_a_probe_says_how_likely_a_turn_ends(tmp_path, mute, logged):
    run_probe(short_run(tmp_path, mute, **{"rollout.max_new_tokens": 6}), ["prior_turn"], [1.0], 4)
    (line,) = (line for line in logged if SAID in line)
    assert WARNED in line


def test_where_weights_will_be_divided_it_is_said_that_nothing_was_tried(tmp_path, model_dir, logged):
    config = short_run(tmp_path, model_dir)
    bundle = load_bundle(config)
    report_turn_end(config, bundle, [], torch.device("meta"))
    assert logged[-1].startswith("how likely the model ends its turn is not tried where weights are divided")
