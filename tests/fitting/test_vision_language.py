"""Models that see pictures too are trained on texts: the language model alone, by either backend, exported whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from test_export_verb import END, SIZES, logits, train
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
)

from onpolicy_sdft import load_config, load_run
from onpolicy_sdft.config.schema import LoraConfig, ModelConfig
from onpolicy_sdft.fitting.export import export
from onpolicy_sdft.fitting.memory_plan import plan
from onpolicy_sdft.models.load import load_tokenizer
from onpolicy_sdft.models.sizes import model_sizes
from tests.conftest import make_tokenizer

TEXT: dict[str, Any] = {**SIZES, "bos_token_id": 256, "eos_token_id": END}
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
EYE = {"hidden_size": 32, "intermediate_size": 32, "patch_size": 4}
TOWER = {**EYE, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
FAMILIES: dict[str, Any] = {
    "llava": lambda: LlavaConfig(
        text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**TOWER), image_token_index=260
    ),
    "gemma3": lambda: Gemma3Config(
        text_config={**TEXT, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}, vision_config=TOWER,
        image_token_index=260, mm_tokens_per_image=4,
    ),
    "qwen2.5-vl": lambda: Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": ROPE}, image_token_id=260, video_token_id=261,
        vision_config={**EYE, "depth": 1, "out_hidden_size": 32, "num_heads": 2}, vision_start_token_id=262,
        vision_end_token_id=263,
    ),
}  # fmt: skip


def base(path: Path, family: str) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(FAMILIES[family]()).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    for name in PROCESSORS:
        (path / name).write_text(f'{{"of": "{name}"}}')
    return path


def eyes(model: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if "visual" in name or "vision" in name}


@pytest.mark.parametrize("backend", ["engine", "hf"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.few(1)
def test_adapters_reach_the_language_model_alone_and_load_with_the_plain_class(tmp_path, family, backend, logged):
    model = base(tmp_path / "base", family)
    run = train(model, "run", rollout__backend=backend)
    (said,) = [line for line in logged if "only the language model is trained" in line]
    assert "vis" in said
    assert not [line for line in logged if "rollouts go through" in line]
    own = load_run(run).model
    assert not [name for name, _ in own.named_parameters() if "vis" in name and "lora_" in name]
    start = AutoModelForImageTextToText.from_pretrained(model)
    assert not torch.allclose(logits(own), logits(start), atol=0.01)
    adapted = PeftModel.from_pretrained(start, run / "model")
    torch.testing.assert_close(logits(adapted), logits(own), atol=1e-4, rtol=0)
    assert "AutoModelForImageTextToText" in (run / "model" / "README.md").read_text()
    export(run, tmp_path / "plain", merged=True, push_to_hub=None)
    for name in PROCESSORS:
        for exported in (run / "model", tmp_path / "plain"):
            assert (exported / name).read_bytes() == (model / name).read_bytes()
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(plain), logits(own), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.few(1)
def test_full_fine_tuning_leaves_what_sees_as_it_is(tmp_path, family):
    model = base(tmp_path / "base", family)
    run = train(model, "run", lora__enabled=False, optim__lr=1e-3)
    start, plain = (AutoModelForImageTextToText.from_pretrained(path) for path in (model, run / "model"))
    torch.testing.assert_close(logits(plain), logits(load_run(run).model), atol=1e-4, rtol=0)
    before, after = eyes(start), eyes(plain)
    assert before.keys() == after.keys() != set()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.allclose(logits(plain), logits(start), atol=0.01)


def test_sizes_are_read_from_the_config_alone(tmp_path):
    sizes = model_sizes(ModelConfig(name=str(base(tmp_path / "base", "llava"))), LoraConfig(r=4))
    assert sizes.num_layers == 2
    assert sizes.num_trainable == 2 * 4 * (2 * 64 + 2 * 48 + 3 * 80)


def test_a_plan_offers_what_can_train_it(tmp_path):
    """What divides parameters would divide those of the vision tower, which is never read, too."""
    config = load_config(**{"model.name": str(base(tmp_path / "base", "llava"))})
    assert [row.backend for row in plan(config, 2, 80.0).rows] == ["ddp", "zero1", "zero2"]


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_a_chat_template_that_stands_with_the_processor_is_read(tmp_path, name):
    path = base(tmp_path / "base", "llava")
    template = (path / "chat_template.jinja").read_text()
    (path / "chat_template.jinja").unlink()
    (path / name).write_text(json.dumps({"chat_template": template}))
    assert load_tokenizer(str(path), ModelConfig(name=str(path))).chat_template == template
