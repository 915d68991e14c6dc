from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from onpolicy_sdft.models.card import model_card
from onpolicy_sdft.models.generation import settle_generation


@pytest.mark.parametrize(
    ("own", "stops", "found"),
    [(None, [7], 7), (5, [7], [5, 7]), (7, [7], 7), ([9, 5], [5, 7], [9, 5, 7]), ([5], [], [5])],
)
def test_stop_tokens_are_those_that_were_there_and_the_runs_behind_them(tiny_model, own, stops, found):
    model = tiny_model()
    model.generation_config.eos_token_id = own
    settle_generation(model, stops)
    assert model.generation_config.eos_token_id == found


@pytest.mark.parametrize(
    "idle",
    [
        {"temperature": 0.6},
        {"do_sample": False, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
        {"num_beams": 1, "length_penalty": 2.0, "early_stopping": True},
        {"use_cache": False, "cache_implementation": "static"},
        {"output_scores": True},
        {"pad_token_id": -1},
    ],
)
def test_settings_that_do_nothing_are_left_out_and_named(tiny_model, tmp_path, idle, logged):
    model = tiny_model()
    for name, value in idle.items():
        setattr(model.generation_config, name, value)
    settle_generation(model, [7])
    model.generation_config.save_pretrained(tmp_path)
    assert all(name in logged[0] for name, value in idle.items() if value not in (False, 1))
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [257, 7]


def test_settings_that_do_something_stay(tiny_model, logged):
    model = tiny_model()
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_k=20, eos_token_id=5)
    settle_generation(model, [7])
    config = model.generation_config
    assert not logged
    assert (config.do_sample, config.temperature, config.top_k) == (True, 0.6, 20)


def test_a_config_that_contradicts_itself_is_replaced_by_its_token_ids(tiny_model, tmp_path, logged):
    model = tiny_model()
    model.generation_config.num_return_sequences = 3
    settle_generation(model, [7])
    model.generation_config.save_pretrained(tmp_path)
    assert "num_return_sequences" in logged[0]
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [257, 7]


TEXT = {
    "repetition_penalty": 1.5, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(100)), "min_new_tokens": 5,
    "begin_suppress_tokens": [65], "num_beams": 4, "forced_eos_token_id": 257, "forced_bos_token_id": 65,
    "stop_strings": ["a"], "bad_words_ids": [[65], [66]], "sequence_bias": [[[65], 9.0]], "max_time": 1e-9,
    "exponential_decay_length_penalty": [2, 9.0],
}  # fmt: skip


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.few(5)
def test_an_export_answers_as_was_scored_whatever_the_base_would_do(tiny_model, tmp_path, name, logged):
    """The setting is named with its value, before the first step and in the card, of later exports as well."""
    model = tiny_model(seed=3)
    ids = torch.tensor([[1, 2, 3, 40, 50]])
    own = model.generate(ids, do_sample=False, max_new_tokens=12)
    setattr(model.generation_config, name, TEXT[name])
    settle_generation(model, [257])
    assert f"{name}=" in logged[0]
    for folder in (tmp_path / "run", tmp_path / "export"):
        model.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(model.generate(ids, do_sample=False, max_new_tokens=12), own)
        settle_generation(model, [257])
        assert len(logged) == 1
        assert f"scored without: {name}=" in model_card(model, "base", {}, {})


def test_beams_are_left_out_with_what_belongs_to_them(tiny_model, tmp_path, logged):
    model = tiny_model()
    beams = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "num_return_sequences": 4}
    model.generation_config = GenerationConfig(**beams, eos_token_id=5)
    settle_generation(model, [7])
    assert len(logged) == 1
    assert all(f"{name}=" in logged[0] for name in beams)
    model.generation_config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).num_beams in (None, 1)


def test_settings_that_leave_greedy_text_as_it_is_are_not_spoken_of(tiny_model, logged):
    model = tiny_model()
    idle = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "min_length": 0, "max_length": 99}
    model.generation_config = GenerationConfig(**idle, suppress_tokens=[], eos_token_id=5)
    settle_generation(model, [7])
    assert not logged
    assert model.generation_config.max_length == 99
