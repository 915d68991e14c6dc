"""Models whose files lack weights, hold others or damaged ones, or need what is not here: refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from onpolicy_sdft.config.schema import LoraConfig, ModelConfig
from onpolicy_sdft.errors import ModelError
from onpolicy_sdft.models.load import load
from onpolicy_sdft.models.lora import prepare_trainable
from onpolicy_sdft.models.randomness import refuse_random
from onpolicy_sdft.models.sizes import model_sizes

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(model_dir, tmp_path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def change_weights(folder: Path, change, name: str = "model.safetensors") -> None:
    weights = load_file(folder / name)
    change(weights)
    save_file(weights, folder / name, metadata={"format": "pt"})


def set_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(folder: Path, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load(ModelConfig(name=str(folder), **options))
    assert str(folder) in str(caught.value)
    assert " Fix: " in str(caught.value)
    return str(caught.value)


def test_weights_that_are_missing_from_the_files_are_refused_by_name(folder):
    change_weights(folder, lambda weights: weights.pop(UP))
    assert f"lack 1 weights that its config.json asks for, which would be made up at random: {UP}." in refusal(folder)


def test_of_many_missing_weights_the_first_few_are_named(folder):
    set_config(folder, num_hidden_layers=4)
    assert "(18 in all)" in refusal(folder)


def test_an_output_layer_that_is_missing_is_refused_and_a_tied_one_is_not(folder):
    load(ModelConfig(name=str(folder)))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    set_config(folder, tie_word_embeddings=False)
    assert "lm_head.weight" in refusal(folder)


def test_weights_of_another_shape_are_refused_with_both(folder):
    set_config(folder, intermediate_size=40)
    assert "model.layers.0.mlp.down_proj.weight (32, 48) for (32, 40)" in refusal(folder)


def test_surplus_weights_are_said_in_one_line(folder, logged):
    set_config(folder, num_hidden_layers=1)
    load(ModelConfig(name=str(folder)))
    (line,) = (line for line in logged if line.startswith("warning: "))
    assert "hold 9 weights that its config.json has no place for" in line


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(folder, number):
    change_weights(folder, lambda weights: weights[UP][0].fill_(number))
    assert f"hold NaN or infinite numbers, so every answer would be noise: {UP}." in refusal(folder)


def test_a_model_that_computes_no_numbers_is_not_called_random(tiny_model):
    model = tiny_model()
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda _, __, output: output * float("inf"))
    with pytest.raises(ModelError, match=r"infinite numbers .* first in model\.layers\.1\.mlp\.down_proj .* Fix: "):
        refuse_random(model)


def test_a_file_that_was_cut_off_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    assert f"{path} is damaged or cut off" in refusal(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_a_model_of_a_quantiser_that_is_not_here_is_refused_with_the_way_out(folder, monkeypatch, method):
    def fail(*arguments, **options):
        raise ImportError("Loading it requires another package")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    set_config(folder, quantization_config={"quant_method": method, "bits": 4})
    assert f"quantised by {method}; name the model before that" in refusal(folder)


def test_an_attention_whose_package_is_missing_is_refused_with_the_option(folder, monkeypatch):
    def fail(*arguments, **options):
        raise ImportError("FlashAttention2 has been toggled on, but the package doesn't seem to be installed.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    said = refusal(folder, attn_implementation="flash_attention_2")
    assert "leave --model.attn_implementation flash_attention_2 out" in said


def test_an_adapter_that_lacks_weights_is_refused_by_name(folder, tokenizer, tmp_path):
    config = ModelConfig(name=str(folder))
    adapter = tmp_path / "adapter"
    prepare_trainable(load(config).model, LoraConfig(r=4), config, 0).save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    load(ModelConfig(name=str(adapter)))
    missing = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    change_weights(adapter, lambda weights: weights.pop(missing), "adapter_model.safetensors")
    assert "layers.1.mlp.up_proj.lora_B" in refusal(adapter)
    change_weights(adapter, lambda weights: weights.update({missing: torch.zeros(3, 3)}), "adapter_model.safetensors")
    assert "size mismatch" in refusal(adapter)


def test_a_run_directory_is_refused_with_the_model_in_it(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    for ask in (lambda config: load(config), lambda config: model_sizes(config, LoraConfig())):
        with pytest.raises(ModelError) as caught:
            ask(ModelConfig(name=str(tmp_path)))
        assert f"Fix: --model.name {tmp_path / 'model'} " in str(caught.value)
        assert f"--train.init_from {tmp_path}" in str(caught.value)
