"""Nothing that reads or writes texts goes beyond the model's context window: it fits in, or is refused before work."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import say, write_run
from transformers import GPT2Config, GPT2LMHeadModel

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.build.bundle import context_window, load_bundle
from onpolicy_sdft.build.data import load_rows, make_prompt_pairs
from onpolicy_sdft.build.loaded import load_target
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.eval.probe import run_probe
from tests.conftest import make_tokenizer

WINDOW = 80


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A model with learned positions: it cannot read beyond its window."""
    folder = tmp_path_factory.mktemp("short")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=264, n_embd=32, n_layer=2, n_head=4, n_positions=WINDOW, bos_token_id=256, eos_token_id=257
        )
        GPT2LMHeadModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def config_of(tmp_path, short):
    def make(**options):
        shared = {
            "rollout.max_new_tokens": 8, "train.max_steps": 1, "train.output_dir": tmp_path / "run", "gate.rows": 0,
            "eval.kl_prompts": 0, "probe.num_examples": 0,
        }  # fmt: skip
        return load_config(write_run(tmp_path, short, say("one", "two"), **{**shared, **options}))

    return make


def test_answers_are_as_long_as_the_window_has_room_and_no_longer(short, logged):
    finished = load_target(str(short))
    finished.bundle.loaded.model.generation_config.eos_token_id = None
    (answer,) = finished.sample(["hi"])
    assert answer == finished.sample(["hi"], max_new_tokens=WINDOW - 21)[0]
    assert "has 80 positions: 1 answers have room for 59 or more tokens" in "".join(logged)


def test_a_prompt_without_room_for_an_answer_is_refused_before_any_is_answered(short):
    with pytest.raises(DataError, match=r"Prompt 2 takes 99 tokens .* window of 80 positions .*Fix: a shorter prompt"):
        load_target(str(short)).sample(["hi", "x" * 80])


def test_a_rollout_as_long_as_the_window_is_refused_with_window_and_option(config_of):
    with pytest.raises(DataError, match=r"rollout\.max_new_tokens=80 leaves no room .* 80 positions .* 40 or less"):
        fit(config_of(**{"rollout.max_new_tokens": 80}))


def test_rows_that_the_window_leaves_no_room_for_are_refused_with_window_and_option(config_of):
    config = config_of(**{"rollout.max_new_tokens": 60})
    with pytest.raises(DataError) as caught:
        make_prompt_pairs(config, load_bundle(config), *load_rows(config))
    said = str(caught.value)
    assert "the 20 tokens that rollout.max_new_tokens=60 leaves of the model's context window of 80 positions" in said
    assert "max_student_tokens" not in said
    assert "Fix: lower rollout.max_new_tokens" in said


def test_general_prompts_beyond_the_window_are_refused_before_the_first_step(config_of, tmp_path):
    config = config_of(**{"eval.kl_prompts": 60})
    sft = dataclasses.replace(config, train=dataclasses.replace(config.train, targets="demonstrations"))
    with pytest.raises(DataError, match=r"eval\.kl_prompts.* 80 positions .*Fix: --eval\.kl_prompts 0"):
        fit(sft)
    assert not (tmp_path / "run").exists()


def test_a_probe_beyond_the_window_is_refused_before_anything_is_written(config_of):
    with pytest.raises(DataError, match="context window of 80 positions"):
        run_probe(config_of(), ["reference"], [1.0], 2)


@pytest.mark.parametrize(("said", "window"), [(-1, None), (None, None), (64, 64)])
def test_a_window_that_a_config_does_not_say_is_none(short, said, window):
    bundle = load_target(str(short)).bundle
    bundle.loaded.model.config.max_position_embeddings = said
    assert context_window(bundle) == window
