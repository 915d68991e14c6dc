"""A run that breaks inside a step and is resumed is the undisturbed one, bit for bit; what it read must be the same."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import questions, write_run

from onpolicy_sdft import evaluate, fit, load_config, load_run
from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.models.weights import PolicyWeights
from onpolicy_sdft.runs.files import read_jsonl
from onpolicy_sdft.train.backend import Backend
from onpolicy_sdft.train.pairing import Pairing
from onpolicy_sdft.train.source import PolicySource
from onpolicy_sdft.train.step import Trainer
from onpolicy_sdft.types import Turn

TASK = """
import helper
from onpolicy_sdft.tasks.exact import Exact

class Mine(Exact):
    pass
"""

CHECK = """
def check(prompt, completion, row):
    return True
"""


def with_a_merge(path: Path) -> None:
    """Write the letters of "say" with one token less; the new one takes the id of a byte that no text has."""
    found = json.loads(path.read_text())
    vocabulary = found["model"]["vocab"]
    vocabulary["ay"] = vocabulary.pop("\u0100")
    found["model"]["merges"] = [["a", "y"]]
    path.write_text(json.dumps(found))


def write_config(folder: Path, model_dir: Path, patch: pytest.MonkeyPatch) -> Path:
    model = shutil.copytree(model_dir, folder / "model")
    with_a_merge(model / "tokenizer.json")
    (folder / "mine.py").write_text(TASK)
    (folder / "helper.py").write_text("ANSWER = 1\n")
    (folder / "validating.py").write_text(CHECK)
    patch.syspath_prepend(folder)
    (folder / "teacher.j2").write_text("{{ question }} Shown: {{ demonstration }}")
    options = {
        "lora.dropout": 0.2, "task.name": f"{folder / 'mine.py'}:Mine", "context.template": folder / "teacher.j2",
        "rollout.max_new_tokens": 6, "rollout.num_samples": 2, "eval.before_and_after": False,
        "teacher.weights": "ema", "teacher.half_life": 2.0, "optim.lr": 0.01, "optim.warmup_steps": 0,
        "train.batch_size": 3, "train.max_steps": 4, "train.checkpoint_steps": 3, "train.output_dir": folder / "run",
        "eval.every_steps": 100, "eval.validation": [{
            "label": "own", "data": {"path": str(folder / "rows.jsonl"), "limit": 1}, "max_new_tokens": 2,
            "task": {"name": f"{folder / 'validating.py'}:check"},
        }],
    }  # fmt: skip
    return write_run(folder, model, [(f"say {i}", f"{i}" * 3) for i in range(6)], **options)


@pytest.fixture
def config(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_config(tmp_path, model_dir, monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> dict[str, torch.Tensor]:
    """What the undisturbed run trains."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        return trained(write_config(folder, model_dir, patch), folder / "run")


def trained(config: Path, output: Path, **options: object) -> dict[str, torch.Tensor]:
    fit(load_config(config, **{"train.output_dir": str(output), **options}))
    return load_file(output / "checkpoints" / "step-000004" / "trainable.safetensors")


PHASES = {
    "rollout": (PolicySource, "rollouts"),
    "review": (Trainer, "review"),
    "pair": (Pairing, "micro_batches"),
    "backward": (Backend, "backward"),
    "before the update": (Backend, "optimizer_step"),
    "after the update": (PolicyWeights, "follow"),
    "at the end": (PolicySource, "remember"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_step_that_breaks_anywhere_is_done_again_bit_for_bit(config, whole, tmp_path, monkeypatch, phase):
    owner, name = PHASES[phase]
    real, calls = getattr(owner, name), []

    def breaks(self, *arguments, **options):
        calls.append(name)
        if len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 2:
            raise RuntimeError("broken")
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, breaks)
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "metrics.jsonl").touch()
        with pytest.raises(RuntimeError, match="broken"):
            trained(config, tmp_path / "run", **{"train.resume": "auto"})
    assert calls
    again = trained(config, tmp_path / "run", **{"train.resume": "auto"})
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def edit_chat_template(tmp_path: Path) -> str:
    path = tmp_path / "model" / "chat_template.jinja"
    path.write_text("Rules: " + path.read_text())
    return "prompts and targets"


def edit_teacher_template(tmp_path: Path) -> str:
    (tmp_path / "teacher.j2").write_text("{{ question }} Seen: {{ demonstration }}")
    return "prompts and targets"


def edit_task(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(TASK + "\n    name = 'mine'\n")
    return "task files"


def edit_weights(tmp_path: Path) -> str:
    from safetensors.torch import save_file

    path = next((tmp_path / "model").glob("*.safetensors"))
    weights = load_file(path)
    name = next(name for name, weight in weights.items() if weight.ndim == 2)
    weights[name][0, 0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    return "base weights"


def edit_helper_of_the_task(tmp_path: Path) -> str:
    (tmp_path / "helper.py").write_text("ANSWER = 2\n")
    return "task files"


def edit_order_of_weights(tmp_path: Path) -> str:
    from safetensors.torch import save_file

    path = next((tmp_path / "model").glob("*.safetensors"))
    weights = load_file(path)
    name = next(name for name, weight in weights.items() if weight.ndim == 2)
    save_file({**weights, name: weights[name].flip(0).contiguous()}, path, metadata={"format": "pt"})
    return "base weights"


def edit_config(tmp_path: Path) -> str:
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 0.1}))
    return "base config rms_norm_eps"


def edit_stop_tokens(tmp_path: Path) -> str:
    path = tmp_path / "model" / "generation_config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**settings, "eos_token_id": [5, 6, 257]}))
    return "base stop tokens"


def edit_tokenizer(tmp_path: Path) -> str:
    """It reads a letter otherwise that no prompt has, but rollouts may."""
    path = tmp_path / "model" / "tokenizer.json"
    found = json.loads(path.read_text())
    found["normalizer"] = {"type": "Replace", "pattern": {"String": "Q"}, "content": "R"}
    path.write_text(json.dumps(found))
    return "tokenizer"


def edit_merges(tmp_path: Path) -> str:
    """The merge that the model of this test has, taken out."""
    path = tmp_path / "model" / "tokenizer.json"
    found = json.loads(path.read_text())
    assert found["model"]["merges"]
    path.write_text(json.dumps({**found, "model": {**found["model"], "merges": []}}))
    return "prompts and targets was .*tokenizer"


def edit_check_of_the_validation(tmp_path: Path) -> str:
    (tmp_path / "validating.py").write_text(CHECK.replace("True", "False"))
    return "questions of the validation"


EDITS = [
    edit_chat_template, edit_teacher_template, edit_task, edit_helper_of_the_task, edit_weights, edit_order_of_weights,
    edit_config, edit_stop_tokens, edit_tokenizer, edit_merges, edit_check_of_the_validation,
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_a_resumed_run_refuses_to_read_other_things_than_it_began_with(config, tmp_path, edit):
    options = {"train.output_dir": str(tmp_path / "run"), "train.max_steps": 2}
    fit(load_config(config, **options))
    what = edit(tmp_path)
    with pytest.raises(RunDirectoryError, match=f"belongs to another run: .*{what}"):
        trained(config, tmp_path / "run", **{"train.resume": "auto"})


def test_a_run_with_a_date_in_its_prompts_goes_on_with_that_date_on_another_day(config, tmp_path, logged):
    path = tmp_path / "model" / "chat_template.jinja"
    path.write_text("{{ strftime_now('%d %b %Y') }}: " + path.read_text())
    options = {"train.output_dir": str(tmp_path / "run"), "train.max_steps": 2}
    fit(load_config(config, **options, **{"context.date": "2026-11-01"}))
    again = load_config(config, **{**options, "train.max_steps": 3, "train.resume": "auto"})
    assert fit(again).result.reason == "finished"
    assert "the chat template goes on with the date of the run's start: context.date=2026-11-01" in logged
    other = load_config(config, **{**options, "train.resume": "auto", "context.date": "2026-11-02"})
    with pytest.raises(RunDirectoryError, match=r"date in the chat template \(context\.date\) was '2026-11-01'"):
        fit(other)


@pytest.mark.parametrize("edit", [edit_weights, edit_order_of_weights, edit_config])
def test_an_adapter_is_not_put_on_another_base_of_the_same_name(config, tmp_path, edit):
    run = fit(load_config(config, **{"train.max_steps": 1})).run.path
    what = edit(tmp_path)
    with pytest.raises(RunDirectoryError, match=f"is not what .* was trained on: another {what}"):
        load_run(run)


def test_a_run_that_trained_all_weights_is_not_measured_against_another_base(config, tmp_path):
    options = {"train.max_steps": 1, "lora.enabled": False, "eval.kl_prompts": 2, "eval.sets": [questions(tmp_path)]}
    run = fit(load_config(config, **options)).run.path
    evaluate(run)
    edit_weights(tmp_path)
    with pytest.raises(RunDirectoryError, match="is not what .* was trained on: another base weights"):
        evaluate(run, output=tmp_path / "elsewhere")


def test_an_adapter_is_asked_by_the_template_it_was_trained_with(config, tmp_path):
    run = fit(load_config(config, **{"train.max_steps": 1})).run.path
    asked = load_run(run).bundle.renderer.student_ids([Turn("user", "say 1")])
    edit_chat_template(tmp_path)
    assert load_run(run).bundle.renderer.student_ids([Turn("user", "say 1")]) == asked


def test_a_finished_run_is_asked_with_the_date_that_it_saw_on_another_day(config, tmp_path, monkeypatch, logged):
    path = tmp_path / "model" / "chat_template.jinja"
    path.write_text("{{ strftime_now('%d %b %Y') }}: " + path.read_text())
    run = fit(load_config(config, **{"train.max_steps": 1})).run
    assert load_config(run.config_path).context.date is None
    asked = load_run(run.path).bundle.renderer.student_ids([Turn("user", "say 1")])

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + timedelta(days=1)

    monkeypatch.setattr("onpolicy_sdft.data.writer.datetime", Tomorrow)
    assert load_run(run.path).bundle.renderer.student_ids([Turn("user", "say 1")]) == asked
    manifest = json.loads(run.manifest_path.read_text())
    assert manifest.pop("date") == f"{datetime.now():%Y-%m-%d}"
    run.manifest_path.write_text(json.dumps(manifest))  # of an earlier version
    assert load_run(run.path).bundle.renderer.student_ids([Turn("user", "say 1")]) != asked
    assert any("does not say which date its chat template saw" in line for line in logged)
