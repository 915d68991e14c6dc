"""Optimizers beside AdamW: they learn, a run resumes bit for bit, and what cannot be had is refused beforehand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_backend import deepspeed, fsdp
from tiny import say, write_run

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.config.schema import OptimConfig
from onpolicy_sdft.errors import ConfigError, MissingDependencyError
from onpolicy_sdft.fitting.memory_plan import plan
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_jsonl
from onpolicy_sdft.train.backend import Backend
from onpolicy_sdft.train.checkpoint import newest_checkpoint, weights_file
from onpolicy_sdft.train.optim import make_optimizer

KINDS: dict[str, dict[str, Any]] = {
    "adafactor": {"optim.lr": 0.03, "lora.enabled": False},
    "adamw_8bit": {"optim.lr": 0.003, "lora.enabled": False},
    "adamw_8bit on adapters": {"optim.name": "adamw_8bit", "optim.lr": 0.02, "lora.r": 128},
}


def options_of(kind: str) -> dict[str, Any]:
    found = {"optim.name": kind, **KINDS[kind]}
    if found["optim.name"] == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    return found


def train(folder: Path, model: Path, name: str, **options: Any) -> Path:
    tiny = {
        "rollout.max_new_tokens": 4, "eval.before_and_after": False, "train.batch_size": 3, "optim.warmup_steps": 0,
        "train.targets": "demonstrations", "train.output_dir": folder / name, "train.checkpoint_steps": 1,
    }  # fmt: skip
    fit(load_config(write_run(folder, model, say("one", "two", "six"), **tiny), **options), ["test"])
    return folder / name


def trained(run: Path) -> dict[str, torch.Tensor]:
    found = newest_checkpoint(RunDirectory.open(run))
    assert found is not None
    return load_file(weights_file(found[0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.few(1)
def test_it_learns_and_a_run_that_went_on_has_the_weights_of_one_that_never_stopped(tmp_path, model_dir, kind):
    options = options_of(kind)
    whole = train(tmp_path, model_dir, "whole", **{**options, "train.max_steps": 6})
    losses = [row["values"]["loss/total"] for row in read_jsonl(whole / "metrics.jsonl")]
    assert losses[-1] < 0.9 * losses[0]
    train(tmp_path, model_dir, "halves", **{**options, "train.max_steps": 3})
    again = {**options, "train.max_steps": 6, "train.resume": "auto"}
    first, second = trained(whole), trained(train(tmp_path, model_dir, "halves", **again))
    assert all(torch.equal(first[name], value) for name, value in second.items())
    with pytest.raises(ConfigError, match=r"keep_optimizer=true.*this run is of adamw"):
        train(tmp_path, model_dir, "other", **{
            **options, "optim.name": "adamw", "train.init_from": str(whole), "train.keep_optimizer": True,
        })  # fmt: skip


def test_bitsandbytes_that_is_not_there_is_named_with_the_line_that_installs_it(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'onpolicy_sdft\[bitsandbytes\]'"):
        make_optimizer(tiny_model(), OptimConfig(name="adamw_8bit"))


def test_a_build_that_steps_nothing_here_is_refused_before_the_first_step(tiny_model, monkeypatch):
    class AdamW8bit(torch.optim.SGD):
        def step(self, closure=None):
            raise AttributeError("no kernel")

    monkeypatch.setitem(sys.modules, "bitsandbytes", type(sys)("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", type(sys)("bitsandbytes.optim"))
    sys.modules["bitsandbytes.optim"].AdamW8bit = AdamW8bit  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"does not step weights on cpu .*no kernel.*--optim\.name adamw"):
        make_optimizer(tiny_model(), OptimConfig(name="adamw_8bit"))


def test_adapters_under_adafactor_are_warned_of(tiny_model, logged):
    from onpolicy_sdft.config.schema import LoraConfig, ModelConfig
    from onpolicy_sdft.models.lora import prepare_trainable

    make_optimizer(prepare_trainable(tiny_model(), LoraConfig(), ModelConfig(), 0), OptimConfig(name="adafactor"))
    assert any("start at zero" in line for line in logged)


DIVIDED = [
    {"optim.name": "adafactor"},
    {"optim.name": "adamw_8bit"},
    {"lora.use_dora": True},
    {"lora.modules_to_save": ["lm_head"]},
    {"lora.target_parameters": ["experts.gate_up_proj"]},
    {"lora.trainable_token_indices": [3, "<|im_start|>"]},
]


@pytest.mark.parametrize("options", DIVIDED, ids=str)
@pytest.mark.few(2)
def test_what_divided_weights_cannot_have_is_refused_and_one_process_can(options):
    (name,) = options
    for backend in (deepspeed(), fsdp()):
        with pytest.raises(ConfigError, match=rf"{name}=.*Fix: .*ddp\.yaml"):
            backend.check(load_config(**options))
    Backend("fp32").check(load_config(**options))
    if name.startswith("lora."):
        deepspeed({"stage": 2}).check(load_config(**options))
    else:
        with pytest.raises(ConfigError, match=r"optim\.name"):
            deepspeed({"stage": 2}).check(load_config(**options))


def test_options_of_adamw_are_refused_with_adafactor():
    with pytest.raises(ConfigError, match=r"optim\.eps=1e-06 belongs to AdamW"):
        load_config(**{"optim.name": "adafactor", "optim.eps": 1e-6})


def test_the_plan_knows_what_an_optimizer_keeps_and_where_it_runs(model_dir):
    rows = {}
    for name in ("adamw", "adamw_8bit", "adafactor"):
        options = {"optim.name": name, "model.name": str(model_dir), "lora.enabled": False}
        rows[name] = plan(load_config(**options), 2, 80.0).rows
    assert {row.backend for row in rows["adafactor"]} == {"ddp"} < {row.backend for row in rows["adamw"]}
    kept = [rows[name][0].parts.get("optimizer", 0.0) for name in ("adamw", "adamw_8bit", "adafactor")]
    assert kept[0] == 4 * kept[1] > 0 == kept[2]
