"""Every kind of adapter: exported, merged, resumed and sampled from as it was trained; switched off it is the base."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from test_export_verb import base, logits, train
from transformers import AutoModelForCausalLM

from onpolicy_sdft import load_run
from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.fitting.export import export
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.train.checkpoint import newest_checkpoint, weights_file

KINDS: dict[str, tuple[str, dict[str, Any], str]] = {  # family, options of lora, a part of the names that are trained
    "dora": ("llama", {"use_dora": True}, "lora_magnitude_vector"),
    "dora, rank-stable": ("qwen2 tied", {"use_dora": True, "use_rslora": True}, "lora_magnitude_vector"),
    "whole head": ("llama", {"modules_to_save": ["lm_head"]}, "lm_head.modules_to_save"),
    "both ends": ("llama", {"modules_to_save": ["lm_head", "embed_tokens"]}, "embed_tokens.modules_to_save"),
    "shared ends": ("qwen2 tied", {"modules_to_save": ["embed_tokens"]}, "embed_tokens.modules_to_save"),
    "shared head": ("qwen2 tied", {"modules_to_save": ["lm_head"]}, "embed_tokens.modules_to_save"),
    "last norm": ("gemma2", {"modules_to_save": ["model.norm"]}, "norm.modules_to_save"),
    "experts": (
        "qwen3 moe",
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
        "experts.lora_A",
    ),
    "experts alone": (
        "qwen3 moe",
        {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        "experts.lora_A",
    ),
    "rows": ("llama", {"trainable_token_indices": [75, "t"]}, "embed_tokens.token_adapter"),
    "rows of both ends": (
        "llama",
        {"trainable_token_indices": {"embed_tokens": ["s", "e"], "lm_head": ["<|im_end|>", "o"]}},
        "lm_head.token_adapter",
    ),
    "shared rows": ("qwen2 tied", {"trainable_token_indices": ["s", "<|im_end|>"]}, "embed_tokens.token_adapter"),
    "all at once": (
        "llama",
        {"use_dora": True, "modules_to_save": ["lm_head"], "trainable_token_indices": ["s", "e"]},
        "lm_head.modules_to_save",
    ),
}  # fmt: skip


def options(kind: str) -> dict[str, Any]:
    return {f"lora__{name}": value for name, value in KINDS[kind][1].items()}


def trained(run: Path) -> dict[str, torch.Tensor]:
    """The trained weights of the last checkpoint, by name."""
    found = newest_checkpoint(RunDirectory.open(run))
    assert found is not None
    return load_file(weights_file(found[0]))


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Return the base and the finished run of a kind, made once and to be read only."""

    @cache
    def make(kind: str) -> tuple[Path, Path]:
        model = base(tmp_path_factory.mktemp("kind") / "base", KINDS[kind][0])
        return model, train(model, "run", **options(kind))

    return make


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind, marks=() if kind in ("shared head", "experts", "shared rows", "all at once") else pytest.mark.slow
        )
        for kind in KINDS
    ],
)
@pytest.mark.few(1)
def test_both_exports_are_what_was_trained_and_without_adapters_the_base(run_of, tmp_path, kind):
    family, _, part = KINDS[kind]
    model, run = run_of(kind)
    asked = {"attn_implementation": "eager"} if family == "gemma2" else {}
    export(run, tmp_path / "plain", merged=True, push_to_hub=None)
    own, start = load_run(run).model, AutoModelForCausalLM.from_pretrained(model, **asked)
    for found in (
        AutoPeftModelForCausalLM.from_pretrained(run / "model", **asked),
        AutoModelForCausalLM.from_pretrained(tmp_path / "plain", **asked),
    ):
        torch.testing.assert_close(logits(found), logits(own), atol=1e-4, rtol=0)
    with own.disable_adapter():
        torch.testing.assert_close(logits(own), logits(start), atol=1e-5, rtol=0)
    assert not torch.allclose(logits(own), logits(start), atol=0.01)
    weights = dict(own.named_parameters())
    assert any(part in name for name in weights)
    assert all(torch.equal(weights[name], value) for name, value in trained(run).items())


# What is slow is part of "all at once".
@pytest.mark.parametrize(
    "kind",
    [
        "shared ends", "experts", "shared rows", "all at once",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dora", "both ends")),
    ],
)  # fmt: skip
@pytest.mark.few(1)
def test_a_run_that_went_on_has_the_weights_of_one_that_never_stopped(tmp_path, kind):
    model = base(tmp_path / "base", KINDS[kind][0])
    asked = {**options(kind), "train__checkpoint_steps": 1, "teacher__weights": "ema", "rollout__deterministic": True,
             "rollout__num_slots": 3}  # fmt: skip
    whole = train(model, "whole", train__max_steps=2, **asked)
    train(model, "halves", train__max_steps=1, **asked)
    halves = resume(tmp_path, "halves", train__max_steps=2, **asked)
    first, second = trained(whole), trained(halves)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def resume(folder: Path, name: str, **asked: Any) -> Path:
    (folder / f"{name}-files").rename(folder / f"{name}-earlier")
    return train(folder / "base", name, train__resume="auto", **asked)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dora", "both ends", "shared rows", "experts"])
def test_the_next_task_stands_on_what_this_one_left_merged(run_of, kind):
    model, first = run_of(kind)
    asked = {
        "train__init_from": str(first),
        "train__adapter_handoff": "merge",
        "train__max_steps": 1,
        "optim__lr": 1e-9,
    }
    second = train(model, "second", **options(kind), **asked)
    torch.testing.assert_close(logits(load_run(second).model), logits(load_run(first).model), atol=1e-4, rtol=0)
    changed = shutil.copytree(first, first.with_name("changed"))
    exported = changed / "model" / "adapter_model.safetensors"
    # As if the last checkpoint were of a later step: that one's own bytes are known by their digest.
    save_file({name: value + 1 for name, value in load_file(exported).items()}, exported, {"format": "pt"})
    with pytest.raises(RunDirectoryError, match="went on after its model/ was written"):
        train(model, "third", **options(kind), **{**asked, "train__init_from": str(changed)})
