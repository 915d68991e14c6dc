from __future__ import annotations

import pytest
from transformers import GenerationConfig

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
