"""What an export names as its base, and that it needs nothing that may be missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig

from onpolicy_sdft.config.schema import LoraConfig, ModelConfig
from onpolicy_sdft.errors import ModelError
from onpolicy_sdft.models import embedded
from onpolicy_sdft.models.embedded import embedded_path
from onpolicy_sdft.models.export import export_model, try_saving
from onpolicy_sdft.models.load import load
from onpolicy_sdft.models.lora import prepare_trainable
from tests.conftest import make_model, make_tokenizer

NAME = "smollm2-135m-instruct"
IDS = torch.tensor([[1, 2, 3, 40, 50]])


def adapted(config: ModelConfig):
    model = prepare_trainable(load(config).model, LoraConfig(r=4), config, 0).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache in which the embedded model is a tiny one."""
    folder = embedded_path(NAME, tmp_path / "cache")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return tmp_path / "cache"


def test_an_adapter_on_an_embedded_model_is_loaded_by_peft_and_by_the_program(cache, tmp_path):
    config = ModelConfig(name=f"{embedded.PREFIX}{NAME}", cache_dir=str(cache))
    model = adapted(config)
    export_model(model, make_tokenizer(), tmp_path / "out", config.name, {}, {})
    assert PeftConfig.from_pretrained(tmp_path / "out").base_model_name_or_path == str(embedded_path(NAME, cache))
    own = logits(model)
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")), own)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoPeftModelForCausalLM" in card
    assert config.name in card
    moved = tmp_path / "elsewhere"  # another machine: the program knows which model such a folder held
    cache.rename(moved)
    found = load(ModelConfig(name=str(tmp_path / "out"), cache_dir=str(moved))).model
    torch.testing.assert_close(logits(found), own, atol=1e-4, rtol=1e-4)


def test_an_adapter_names_a_folder_so_that_it_is_found_from_anywhere(model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(model_dir.parent)
    model = adapted(ModelConfig(name=model_dir.name))
    export_model(model, make_tokenizer(), tmp_path / "out", model_dir.name, {}, {})
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


def test_saving_is_tried_without_the_weights_and_leaves_nothing(tiny_model, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for model in (tiny_model(), prepare_trainable(tiny_model(), LoraConfig(), ModelConfig(), 0)):
        try_saving(model, tokenizer, "tiny")
        assert not list(tmp_path.iterdir())
    model = tiny_model()
    model.generation_config.temperature = -1.0
    model.generation_config.num_return_sequences = 4
    with pytest.raises(ModelError, match="could not be saved after training"):
        try_saving(model, tokenizer, "tiny")


@pytest.mark.slow
def test_an_export_from_a_source_checkout_that_was_not_installed_has_a_card(model_dir, tmp_path):
    """The package is on the path, and no metadata tells of it."""
    script = f"""
import importlib.metadata as metadata
own = metadata.version
def version(name):
    if name.replace("-", "_") == "onpolicy_sdft":
        raise metadata.PackageNotFoundError(name)
    return own(name)
metadata.version = version
from pathlib import Path
from onpolicy_sdft.config.schema import ModelConfig
from onpolicy_sdft.models.export import export_model
from onpolicy_sdft.models.load import load
loaded = load(ModelConfig(name={str(model_dir)!r}))
export_model(loaded.model, loaded.tokenizer, Path({str(tmp_path / "out")!r}), "tiny", {{}}, {{}})
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
    assert "(source checkout)" in (tmp_path / "out" / "README.md").read_text()
