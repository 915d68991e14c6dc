"""A run that breaks inside a step and is resumed is the undisturbed one, bit for bit; what it read must be the same."""

from __future__ import annotations

import importlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import questions, write_run

from onpolicy_sdft import evaluate, fit, load_config, load_run
from onpolicy_sdft.build.given import Given
from onpolicy_sdft.config.schema import RunConfig
from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.models.weights import PolicyWeights
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json, read_jsonl
from onpolicy_sdft.screening.watch import Watch
from onpolicy_sdft.train.backend import Backend
from onpolicy_sdft.train.callbacks import Callback
from onpolicy_sdft.train.feedback import FeedbackSource
from onpolicy_sdft.train.pairing import Pairing
from onpolicy_sdft.train.panel import TrainProgress
from onpolicy_sdft.train.recorder import Recorder
from onpolicy_sdft.train.source import PolicySource
from onpolicy_sdft.train.state import TrainState
from onpolicy_sdft.train.step import Trainer
from onpolicy_sdft.train.teacher_scorer import TeacherScorer
from onpolicy_sdft.types import Turn

fit_module = importlib.import_module("onpolicy_sdft.fitting.fit")

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


def trained(config: Path, output: Path, **options: object) -> None:
    fit(load_config(config, **{"train.output_dir": str(output), **options}), given=Given(callbacks=[Callback()]))


SCORES = (0.1, 0.2, 0.3, 0.4, 0.3)  # of the validations: the best weights are those of the fourth step

FAMILIES: dict[str, dict[str, Any]] = {
    "its text": {},
    "feedback": {"feedback.enabled": True, "feedback.num_attempts": 2, "context.template": "reference"},
    "divergence": {"rollout.prompt": "student", "objective.name": "reverse_kl", "objective.anchor_kl": 0.1},
    "all dropped": {"screening.check": "drop", "train.max_bad_steps": 99},
    "all weights": {"lora.enabled": False, "optim.lr": 0.003, "screening.pick": "all"},
}

#: What raises, and in which of its calls in a step: the last steps break one by one, and each time the run is resumed.
PHASES: dict[str, Sequence[tuple[object, str, int]]] = {
    "writing": [
        (PolicySource, "begin", 1), (PolicySource, "rollouts", 1), (Watch, "targets", 1), (Trainer, "review", 1),
    ],
    "learning": [
        (Pairing, "micro_batches", 1), (TeacherScorer, "__call__", 1), (Backend, "backward", 1),
        (Backend, "backward", 2), (Backend, "optimizer_step", 1),
    ],
    "counting": [
        (PolicyWeights, "follow", 1), (TrainState, "advance", 1), (Recorder, "finish", 1),
        (Callback, "on_rollouts", 1),
    ],
    "validating": [
        (fit_module, "_export", 1), (fit_module, "_validate", 1), (Callback, "on_evaluate", 1),
        (fit_module, "refresh_run", 1),
    ],
    "logging": [
        (RunDirectory, "append_metrics", 1), (RunDirectory, "append_rollouts", 1), (Callback, "on_step_end", 1),
        (TrainProgress, "show_step", 1),
    ],
}  # fmt: skip
#: Those of one family only: a teacher that sees attempts, and steps that learn nothing.
OWN_PHASES: dict[str, Sequence[tuple[object, str, int]]] = {
    "trying": [(FeedbackSource, "_try", 1), (FeedbackSource, "_tell", 2)],
    "dropping": [(PolicySource, "remember", 1), (TrainState, "advance", 1), (Recorder, "finish", 1)],
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[Callable[[str], Path]]:
    """Return what gives the run of a family that nothing broke."""
    folders: dict[str, Path] = {}

    def run(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp("whole")
            config = write_config(folders[family], model_dir, patch)
            trained(config, folders[family] / "run", **{**validated(folders[family]), **FAMILIES[family]})
        return folders[family] / "run"

    with pytest.MonkeyPatch.context() as patch:
        score_by_step(patch)
        yield run


def validated(folder: Path) -> dict[str, Any]:
    """Options of a run that has all that a step can have: a validation, best weights, bare answers that are renewed."""
    return {
        "train.max_steps": len(SCORES), "train.micro_batch_tokens": 60, "probe.num_examples": 3,
        "screening.surprise": "drop", "screening.max_surprise": 5.6, "screening.pick": "best",
        "eval.every_steps": 1, "eval.validation": [questions(folder, "quick", limit=1)], "eval.early_stop": 9,
        "eval.best_metric": "eval/quick/score", "train.rollout_samples": 2,
    }  # fmt: skip


def score_by_step(patch: pytest.MonkeyPatch) -> None:
    """Let a validation answer as it does, and give the score of its step."""
    real = fit_module._validate

    def validate(config: RunConfig, *others: Any) -> dict[str, float]:
        step = len(RunDirectory(Path(config.train.output_dir)).read_metrics())
        return dict.fromkeys(real(config, *others), SCORES[step])

    patch.setattr(fit_module, "_validate", validate)


def break_step(patch: pytest.MonkeyPatch, step: int, owner: Any, name: str, number: int, *, late: bool) -> None:
    """Let a call of a function raise in a step, before what it does or after it."""
    real, take, calls = getattr(owner, name), Trainer.train_step, Counter[int]()
    begun = []

    def noted(self: Trainer, *arguments: Any) -> Any:
        begun.append(self.state.step + 1)
        return take(self, *arguments)

    def breaks(*arguments: Any, **options: Any) -> Any:
        calls.update(begun[-1:])
        broken = begun[-1:] == [step] and calls[step] == number
        if late or not broken:
            found = real(*arguments, **options)
        if broken:
            raise RuntimeError("broken")
        return found

    patch.setattr(Trainer, "train_step", noted)
    patch.setattr(owner, name, breaks)


def kept(run: Path) -> dict[str, Any]:
    """What a run leaves that does not depend on clocks."""
    metrics = [row | {"time": 0} for row in read_jsonl(run / "metrics.jsonl")]
    for row in metrics:
        row["values"] = {
            name: value for name, value in row["values"].items()
            if not name.startswith(("time/", "memory/")) and "per_second" not in name
        }  # fmt: skip
    last = max((run / "checkpoints").glob("step-*"))
    files = {
        f"{path.parent.name}/{path.name}": load_file(path)
        for path in (last / "trainable.safetensors", *run.glob("best/*.safetensors"), *run.glob("model/*.safetensors"))
    }
    state = read_json(last / "state.json")
    return {
        **{f"step {number}": row for number, row in enumerate(metrics, 1)}, "state": state["state"],
        "alarms": state["guards"]["alarms"], "rollouts": read_jsonl(run / "rollouts.jsonl"),
        **{f"{name} {key}": value.tolist() for name, file in files.items() for key, value in file.items()},
    }  # fmt: skip


SLOW = [
    *(("its text", part, True) for part in PHASES),
    *((family, part, False) for family in ("feedback", "divergence", "all weights") for part in PHASES),
    ("feedback", "trying", True),
    ("all dropped", "dropping", True),
]


@pytest.mark.parametrize(
    ("family", "part", "late"),
    [*(("its text", part, False) for part in PHASES), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
@pytest.mark.few(1)
def test_a_run_that_breaks_in_every_step_is_the_undisturbed_one(
    undisturbed, tmp_path, model_dir, monkeypatch, family, part, late
):
    whole, run = undisturbed(family), tmp_path / "run"
    config = write_config(tmp_path, model_dir, monkeypatch)
    options = {**validated(tmp_path), **FAMILIES[family], "train.resume": "auto"}
    phases = {**PHASES, **OWN_PHASES}[part]
    for step, phase in enumerate(phases, 1 + len(SCORES) - len(phases)):
        with monkeypatch.context() as patch:
            break_step(patch, step, *phase, late=late)
            with pytest.raises(RuntimeError, match="broken"):
                trained(config, run, **options)
    trained(config, run, **options)
    found, expected = kept(run), kept(whole)
    assert [name for name in expected if found.get(name) != expected[name]] == []
    assert found.keys() == expected.keys()


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


def test_a_resumed_run_refuses_to_read_other_things_than_it_began_with(config, tmp_path):
    fit(load_config(config, **{"train.max_steps": 2}))
    before = shutil.copytree(tmp_path, tmp_path.with_name("before"))
    for edit in EDITS:
        what = edit(tmp_path)
        with pytest.raises(RunDirectoryError, match=f"belongs to another run: .*{what}"):
            trained(config, tmp_path / "run", **{"train.resume": "auto"})
        shutil.rmtree(tmp_path)
        shutil.copytree(before, tmp_path)
    trained(config, tmp_path / "run", **{"train.resume": "auto"})  # with what it began with


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


def test_an_adapter_is_not_put_on_another_base_of_the_same_name(config, tmp_path):
    run = fit(load_config(config, **{"train.max_steps": 1})).run.path
    before = shutil.copytree(tmp_path / "model", tmp_path / "before")
    for edit in (edit_weights, edit_order_of_weights, edit_config):
        what = edit(tmp_path)
        with pytest.raises(RunDirectoryError, match=f"is not what .* was trained on: another {what}"):
            load_run(run)
        shutil.rmtree(tmp_path / "model")
        shutil.copytree(before, tmp_path / "model")


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
