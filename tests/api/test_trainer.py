"""A program with objects in memory makes the run that the command makes, and can look on and end it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import OPTIONS, WORDS, questions, say, write_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from onpolicy_sdft import Callback, SDFTTrainer, load_config, load_run
from onpolicy_sdft.api.checks import given_task
from onpolicy_sdft.api.models import is_in_files
from onpolicy_sdft.cli.main import main
from onpolicy_sdft.errors import ConfigError, DataError, ModelError, RunDirectoryError, SdftError, TaskError
from onpolicy_sdft.report.html import build_report
from onpolicy_sdft.runs.files import read_json, read_jsonl
from onpolicy_sdft.tasks.function import FunctionTask

ROWS = [{"prompt": prompt, "response": text} for prompt, text in say(*WORDS)]
RUN: dict[str, Any] = {
    "rollout.max_new_tokens": 8, "optim.lr": 0.01, "optim.warmup_steps": 1, "train.max_steps": 3,
    "eval.kl_prompts": 2, "eval.kl_max_new_tokens": 4,
}  # fmt: skip
SHARED = {name: value for name, value in OPTIONS.items() if not name.startswith("lora")}
REPORT = "onpolicy_sdft.api.trainer.build_report"
ADAPTERS = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def is_said(prompt: str, completion: str, row: dict[str, Any]) -> bool | tuple[bool, str]:
    return completion.strip() == row["response"] or (False, "something_else")


def load(model_dir: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)


def what_was_learned(run: Path) -> tuple[Any, ...]:
    """Everything of a run that does not tell the time or the place."""
    metrics = [
        {name: value for name, value in row["values"].items() if not name.startswith(("time/", "memory/"))}
        for row in read_jsonl(run / "metrics.jsonl")
    ]
    for values in metrics:
        for name in ("train/tokens_per_second", "rollout/tokens_per_second"):
            values.pop(name)
    summary = json.loads((run / "eval" / "summary.json").read_text())
    scores = {stage: [(each["label"], each["score"]) for each in summary[stage]["sets"]] for stage in summary}
    weights = (run / "model" / "adapter_model.safetensors").read_bytes()
    return metrics, read_jsonl(run / "rollouts.jsonl"), scores, summary["after"]["kl"]["mean"], weights


@pytest.fixture(autouse=True)
def _reports_are_written_where_they_count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report of a run out, which takes as long as some steps, but for the test that asks for it."""
    if request.function is not test_objects_in_memory_make_the_run_of_the_command_bit_for_bit:
        monkeypatch.setattr(REPORT, lambda run: [])


def test_objects_in_memory_make_the_run_of_the_command_bit_for_bit(tmp_path, model_dir):
    config = write_run(tmp_path, model_dir, **RUN, **{"eval.path": str(tmp_path / "rows.jsonl")})
    assert main(["train", "--config", str(config), "--train.output_dir", str(tmp_path / "command")]) == 0
    model, tokenizer = load(model_dir)
    trainer = SDFTTrainer(
        model, tokenizer, Dataset.from_list(ROWS), ROWS, ADAPTERS,
        config={**SHARED, **RUN, "train.output_dir": str(tmp_path / "program")},
    )  # fmt: skip
    outcome = trainer.train()
    mine, theirs = what_was_learned(tmp_path / "program"), what_was_learned(tmp_path / "command")
    for ours, other in zip(mine, theirs, strict=True):
        assert ours == other
    assert (tmp_path / "program" / "report.html").is_file()
    assert outcome.result.reason == "finished"


@pytest.mark.slow
def test_the_run_is_used_without_the_program_that_made_it(tmp_path, model_dir, capsys):
    model, tokenizer = load(model_dir)
    trainer = SDFTTrainer(
        model, tokenizer, ROWS, {"seen": ROWS[:3], "others": iter(ROWS[3:])}, ADAPTERS,
        config={**SHARED, **RUN, "train.output_dir": str(tmp_path / "run")},
    )  # fmt: skip
    assert trainer.evaluate().keys() == {"eval/seen/score", "eval/others/score"}  # the generator is read once
    trainer.train()
    scores = trainer.evaluate()
    assert scores.keys() == {"eval/seen/score", "eval/others/score", "eval/kl"}
    assert scores["eval/kl"] == read_json(tmp_path / "run" / "eval" / "summary.json")["after"]["kl"]["mean"] > 0
    written = trainer.sample(["say one", "say six"], max_new_tokens=6)
    assert load_run(tmp_path / "run").sample(["say one", "say six"], max_new_tokens=6) == written
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert "others" in capsys.readouterr().out
    merged = trainer.save_model(tmp_path / "merged", merged=True)
    adapter = trainer.save_model(tmp_path / "adapter")
    ids = torch.tensor([tokenizer("say one")["input_ids"]])
    whole = AutoModelForCausalLM.from_pretrained(merged)(ids).logits
    on_base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), adapter)(ids).logits
    assert torch.allclose(whole, on_base, atol=1e-4)
    assert torch.equal(trainer.model(ids).logits, on_base)


def test_a_model_that_is_in_no_files_is_kept_with_the_run(tmp_path, model_dir, tiny_model, tokenizer, logged):
    options = {**SHARED, **RUN, **ONE_STEP}
    trainer = SDFTTrainer(
        tiny_model(), tokenizer, ROWS, config={**options, "lora.r": 2, "train.output_dir": str(tmp_path / "run")}
    )
    trainer.train()
    assert says(load_run(tmp_path / "run")) == says(trainer)
    changed, _ = load(model_dir)
    with torch.no_grad():
        changed.model.norm.weight.mul_(1.5)
    changed_run = tmp_path / "changed"
    SDFTTrainer(changed, None, ROWS, config={**options, "train.output_dir": str(changed_run)}).train()
    assert any("it is kept with the run" in line for line in logged)
    assert torch.equal(load_run(changed_run).bundle.loaded.model.model.norm.weight, changed.model.norm.weight)
    with pytest.raises(ConfigError, match=r"goes on from another run.*Fix: save it"):
        SDFTTrainer(
            tiny_model(), tokenizer, ROWS,
            config={**options, "train.init_from": str(tmp_path / "run"), "train.output_dir": str(tmp_path / "b")},
        ).train()  # fmt: skip


def test_every_weight_of_a_model_object_is_trained(tmp_path, model_dir):
    model, tokenizer = load(model_dir)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {**SHARED, **RUN, "lora.enabled": False, "train.output_dir": str(tmp_path / "run")}
    trainer = SDFTTrainer(model, tokenizer, ROWS, ROWS, config=options)
    trainer.train()
    assert trainer.model is model
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert trainer.evaluate()["eval/kl"] > 0


class Checks:
    def check(self, completion, demonstration):
        return True


class Watcher(Callback):
    """Notes what it is told; ends the run after a step."""

    def __init__(self, last: int | None = None, fails: int | None = None) -> None:
        self.last, self.fails, self.heard = last, fails, list[tuple[Any, ...]]()

    def on_rollouts(self, step, targets):
        self.heard.append(("rollouts", step, len(targets), {target.verdict for target in targets}))

    def on_step_end(self, step, metrics):
        if step == self.fails:
            raise ZeroDivisionError("mine")
        self.heard.append(("step", step, metrics["loss/total"]))
        return step == self.last

    def on_evaluate(self, step, stage, scores):
        self.heard.append(("evaluate", step, stage, sorted(scores)))

    def on_save(self, step, path):
        self.heard.append(("save", step, path.name))


def options_of(tmp_path: Path, name: str = "run", **more: Any) -> dict[str, Any]:
    quick = {"eval.kl_prompts": 0, "train.output_dir": str(tmp_path / name)}
    return {**SHARED, **RUN, "lora.r": 4, **quick, **more}


def says(model: Any) -> list[str]:
    return model.sample(["say one"], max_new_tokens=16)  # enough to tell models apart, of 256


ONE_STEP = {"train.max_steps": 1, "eval.kl_prompts": 0}  # where it does not count how much was learned


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_dir) -> SDFTTrainer:
    """A trainer whose run in ``run`` is finished, to be read only."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(REPORT, lambda run: [])
        trainer = SDFTTrainer(str(model_dir), None, ROWS, ROWS[:2], config=options_of(folder))
        trainer.train()
    return trainer


def options_of_finished(finished: SDFTTrainer, **more: Any) -> dict[str, Any]:
    return options_of(finished.run.path.parent, **more)


def test_a_callback_hears_of_everything_in_order(tmp_path, model_dir):
    write_run(tmp_path, model_dir)
    validation = [questions(tmp_path, "quick", limit=2)]
    options = options_of(
        tmp_path, **{"eval.validation": validation, "eval.every_steps": 2, "train.checkpoint_steps": 2}
    )
    watcher = Watcher()
    SDFTTrainer(str(model_dir), None, ROWS, ROWS[:2], config=options, callbacks=[watcher]).train()
    losses = [row["values"]["loss/total"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert watcher.heard == [
        ("evaluate", 0, "before", ["eval/test/score"]),
        ("rollouts", 1, 4, {"keep"}),
        ("step", 1, losses[0]),
        ("rollouts", 2, 4, {"keep"}),
        ("evaluate", 2, "validation", ["eval/quick/score"]),
        ("step", 2, losses[1]),
        ("save", 2, "step-000002"),
        ("rollouts", 3, 4, {"keep"}),
        ("step", 3, losses[2]),
        ("save", 3, "step-000003"),
        ("evaluate", 3, "after", ["eval/test/score"]),
        ("save", 3, "model"),
    ]


def test_a_callback_ends_the_run_after_a_whole_step_and_it_can_go_on(tmp_path, model_dir, finished):
    outcome = SDFTTrainer(
        str(model_dir), None, ROWS, config=options_of(tmp_path), callbacks=[Watcher(), Watcher(last=2)]
    ).train()
    assert (outcome.result.reason, outcome.result.exit_code) == ("callback", 0)
    assert (tmp_path / "run" / "model").is_dir()
    again = SDFTTrainer(str(model_dir), None, ROWS, config=options_of(tmp_path, **{"train.resume": "auto"}))
    assert again.train().result.reason == "finished"
    runs = tmp_path / "run", finished.run.path
    adapters = [(run / "model" / "adapter_model.safetensors").read_bytes() for run in runs]
    assert adapters[0] == adapters[1]


def test_an_error_in_a_callback_costs_no_step(tmp_path, model_dir):
    trainer = SDFTTrainer(str(model_dir), None, ROWS, config=options_of(tmp_path), callbacks=[Watcher(fails=2)])
    with pytest.raises(ZeroDivisionError, match="mine"):
        trainer.train()
    assert (tmp_path / "run" / "checkpoints" / "step-000002").is_dir()


def test_a_function_is_the_check_of_rollouts_and_of_evaluations(tmp_path, model_dir):
    options = options_of(tmp_path, **ONE_STEP, **{"screening.check": "fallback"})
    options.pop("task.name")
    trainer = SDFTTrainer(str(model_dir), None, ROWS, ROWS[:3], task=is_said, config=options)
    trainer.train()
    reasons = {row["reason"] for row in read_jsonl(tmp_path / "run" / "rollouts.jsonl")}
    assert reasons == {"check"} or "check" in reasons
    records = read_jsonl(tmp_path / "run" / "eval" / "before-test.jsonl")
    assert {record["reason"] for record in records} == {"something_else"}
    assert trainer.evaluate() == {"eval/test/score": 0.0}

    def other(prompt: str, completion: str, row: dict[str, Any]) -> bool:
        return True

    with pytest.raises(RunDirectoryError, match="task"):  # another check is another run
        SDFTTrainer(
            str(model_dir), None, ROWS, ROWS[:3], task=other, config={**options, "train.resume": "auto"}
        ).train()
    with pytest.raises(TaskError, match=r"was an object of the program.*--task.name FILE.py:NAME"):
        main_in_process(["eval", str(tmp_path / "run")])


@pytest.mark.slow
def test_a_check_of_a_program_that_has_ended_is_replaced_for_every_set(tmp_path, model_dir, capsys):
    options = options_of(tmp_path, **ONE_STEP)
    options.pop("task.name")
    SDFTTrainer(str(model_dir), None, ROWS, {"seen": ROWS[:3]}, task=is_said, config=options).train()
    checks = tmp_path / "my_checks.py"
    checks.write_text("def ok(prompt, completion, row):\n    return True\n")
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--task.name", f"{checks}:ok"]) == 0
    assert "1.000" in capsys.readouterr().out


def a_check(number: int) -> Any:
    def check(prompt: str, completion: str, row: dict[str, Any]) -> bool:
        return len(completion) > number

    return check


def test_the_name_of_a_check_tells_it_from_others_and_is_the_same_in_every_process():
    assert given_task(a_check(1))[0] == given_task(a_check(1))[0]
    assert given_task(a_check(1))[0] != given_task(a_check(2))[0]
    assert given_task(FunctionTask(a_check(1), threshold=0.1))[0] != given_task(FunctionTask(a_check(1)))[0]
    bound = [given_task(partial(is_said_with, number=number, other=object()))[0] for number in (1, 1, 2)]
    assert bound[0] == bound[1] != bound[2]


TYPED = {
    "a constant": "def check(p, c, r):\n    return len(c) > {}",
    "a constant of an inner function": "def check(p, c, r):\n    return any(len(w) > {} for w in c.split())",
    "a constant of its module": "LONG = {}\ndef check(p, c, r):\n    return len(c) > LONG",
    "a function beside it": "def is_long(c):\n    return len(c) > {}\ndef check(p, c, r):\n    return is_long(c)",
    "a default": "def check(p, c, r, long={}):\n    return len(c) > long",
    "a default by keyword": "def check(p, c, r, *, long={}):\n    return len(c) > long",
    "what it closes over": "def make(n):\n    return lambda p, c, r: len(c) > n\ncheck = make({})",
    "what it wraps": "def make(f):\n    return lambda p, c, r: f(c)\ncheck = make(lambda c: len(c) > {})",
    "an object": "class Long:\n    def __call__(self, p, c, r):\n        return len(c) > {}\ncheck = Long()",
}


@pytest.mark.parametrize("source", TYPED.values(), ids=TYPED)
def test_a_check_without_a_source_is_told_from_one_that_differs_in_a_number(source):
    def name(number: int) -> str:
        typed: dict[str, Any] = {"__name__": "typed"}
        exec(source.format(number), typed)  # as at a prompt: no file has the source
        return given_task(typed["check"])[0]

    assert name(0) == name(0) != name(100_000)


def test_a_check_that_compares_with_a_set_has_one_name_in_every_process():
    code = 'exec(\'def check(p, c, r): return c in {"yes", "no", "maybe"}\'); print(given_task(check)[0])'
    names = {
        subprocess.run(
            [sys.executable, "-c", f"from onpolicy_sdft.api.checks import given_task\n{code}"],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout.splitlines()[-1]
        for seed in "12"
    }  # fmt: skip
    assert len(names) == 1


def is_said_with(prompt: str, completion: str, row: dict[str, Any], *, number: int, other: object) -> bool:
    return True


def main_in_process(arguments: list[str]) -> None:
    from onpolicy_sdft import evaluate

    evaluate(arguments[1])


@pytest.mark.slow
def test_sets_keep_apart_whatever_they_are_called(tmp_path, model_dir):
    config = options_of(tmp_path)
    others = [{"prompt": "eval", "response": "x"}]
    SDFTTrainer(str(model_dir), None, ROWS, {"train": others, "eval": others}, config=config).train()
    learned = {row["prompt"] for row in read_jsonl(tmp_path / "run" / "rollouts.jsonl")}
    assert not any(prompt.startswith("eval") for prompt in learned)
    with pytest.raises(ConfigError, match=r"\.\./escaped"):
        SDFTTrainer(str(model_dir), None, ROWS, {"../../escaped": others}, config=options_of(tmp_path, "other"))
    assert not list(tmp_path.glob("**/escaped*"))


def test_a_model_that_was_trained_already_is_not_trained_again(tmp_path, model_dir):
    model, tokenizer = load(model_dir)
    first = SDFTTrainer(model, tokenizer, ROWS, config=options_of(tmp_path, **ONE_STEP))
    first.train()
    with pytest.raises(ModelError, match=r"carries adapters.*load it afresh"):
        SDFTTrainer(model, tokenizer, ROWS, config=options_of(tmp_path, "second"))
    with pytest.raises(ConfigError, match="has begun a run already"):
        first.train()


@pytest.mark.slow
def test_the_base_that_a_failed_start_leaves_is_not_the_next_ones(tmp_path, model_dir, tiny_model, tokenizer):
    bad = [*ROWS, {"prompt": "", "response": "x"}]
    with pytest.raises(DataError):
        SDFTTrainer(tiny_model(), tokenizer, bad, config=options_of(tmp_path, **ONE_STEP)).train()
    assert (tmp_path / "run" / "base").is_dir()
    other = SDFTTrainer(tiny_model(seed=1), tokenizer, ROWS, config=options_of(tmp_path, **ONE_STEP))
    other.train()
    assert says(load_run(tmp_path / "run")) == says(other)
    with pytest.raises(DataError):
        SDFTTrainer(tiny_model(), tokenizer, bad, config=options_of(tmp_path, "named", **ONE_STEP)).train()
    named = SDFTTrainer(str(model_dir), None, ROWS, config=options_of(tmp_path, "named", **ONE_STEP))
    named.train()
    assert not (tmp_path / "named" / "base").exists()
    assert says(load_run(tmp_path / "named")) == says(named)


def test_a_model_whose_files_are_gone_or_of_another_kind_is_kept(tmp_path, model_dir):
    assert is_in_files(load(model_dir)[0], str(model_dir))
    copy = tmp_path / "copy"
    model, tokenizer = load(model_dir)
    model.save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    held = AutoModelForCausalLM.from_pretrained(copy)
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    assert not is_in_files(held, str(copy))
    assert not is_in_files(held, "no/such-model")
    assert not is_in_files(held, "")


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"train.resume": "auto"}, DataError, r"train.jsonl holds other rows.*another train.output_dir"),
        ({}, RunDirectoryError, "already holds a run"),
    ],
)
def test_a_run_that_is_there_keeps_its_rows(finished, model_dir, more, error, message):
    rows = finished.run.path / "data" / "train.jsonl"
    before = rows.read_bytes()
    with pytest.raises(error, match=message):
        SDFTTrainer(str(model_dir), None, ROWS[:5], ROWS[:2], config=options_of_finished(finished, **more)).train()
    assert rows.read_bytes() == before


def test_an_earlier_export_is_replaced_and_other_files_are_not(finished, tmp_path):
    finished.save_model(tmp_path / "out", merged=True)
    assert (tmp_path / "out" / "model.safetensors").exists()
    finished.save_model(tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="is inside the run itself"):
        finished.save_model(finished.run.path / "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds other files"):
        finished.save_model(tmp_path / "mine")


@pytest.mark.slow
def test_answers_that_nothing_checks_have_no_score_and_no_verdict(tmp_path, model_dir, capsys):
    options = options_of(tmp_path, **ONE_STEP, **{"task.name": "free_form", "gate.rows": 0})
    trainer = SDFTTrainer(str(model_dir), None, ROWS, ROWS[:3], config=options)
    outcome = trainer.train()
    assert outcome.verdict.text == "not compared with the start: the task of test has no check"
    for stage in read_json(tmp_path / "run" / "eval" / "summary.json").values():
        assert [entry["score"] for entry in stage["sets"]] == [None]
    assert "test not checked (n = 3)" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert trainer.evaluate() == {}
    assert "not checked" in str(trainer.report())
    build_report(trainer.run)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not checked" in page
    assert "1.000" not in str(trainer.report())
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert "not checked" in capsys.readouterr().out


def test_a_validation_set_that_nothing_checks_is_refused(tmp_path, model_dir):
    write_run(tmp_path, model_dir)
    quick = {**questions(tmp_path, "quick", limit=2), "task": {"name": "free_form"}}
    options = options_of(tmp_path, **{"eval.validation": [quick], "eval.every_steps": 2})
    with pytest.raises(
        ConfigError, match=r"eval.validation 'quick': its task free_form has no check.*Fix: a task.name"
    ):
        SDFTTrainer(str(model_dir), None, ROWS, config=options).train()


def test_limits_and_splits_of_the_config_do_not_get_in_the_way(tmp_path, model_dir):
    options = options_of(tmp_path, **ONE_STEP, **{"eval.limit": 2, "data.split": "test"})
    trainer = SDFTTrainer(str(model_dir), None, ROWS, ROWS, config=options)
    trainer.train()
    assert read_json(tmp_path / "run" / "eval" / "summary.json")["after"]["sets"][0]["n"] == 2


def test_a_report_is_shown_in_place(finished):
    assert "test" in str(finished.report())
    html = finished.report()._repr_html_()
    assert html.count("<img") >= 3
    assert "report.html" in html


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train_dataset": []}, DataError, "no rows"),
        ({"train_dataset": "rows.jsonl"}, DataError, r"given as str.*list of dicts"),
        ({"train_dataset": [{"prompt": "a", "response": "b"}, "c"]}, DataError, "row 2 is str"),
        (
            {"train_dataset": [{"prompt": "a", "response": object()}]},
            DataError,
            "row 1, column 'response' holds what JSON cannot",
        ),
        (
            {"train_dataset": [{"prompt": "a", "response": float("nan")}]},
            DataError,
            "row 1, column 'response' holds what JSON cannot",
        ),
        ({"train_dataset": [{"prompt": "a"}]}, DataError, "no column 'response'"),
        ({"peft_config": LoraConfig(lora_bias=True)}, ConfigError, "lora_bias=True is not supported"),
        ({"peft_config": {"r": 4}}, ConfigError, "peft_config is dict"),
        ({"tokenizer": object()}, ConfigError, "goes with a model object"),
        ({"task": lambda prompt: True}, TaskError, "must take three arguments"),
        ({"task": "exactly"}, TaskError, "nearest: 'exact'"),
        ({"task": Checks()}, TaskError, "no text attribute 'name'"),
        ({"model": 5}, ModelError, "model is int"),
        ({"config": {"optim.learning_rate": 1}}, ConfigError, "no option"),
        ({"callbacks": [Watcher]}, ConfigError, r"no callback.*onpolicy_sdft.Callback"),
        ({"callbacks": [transformers.TrainerCallback()]}, ConfigError, "no callback"),
        ({"train_dataset": pandas.DataFrame(ROWS)}, DataError, "to_dict"),
        ({"callbacks": 5}, ConfigError, "5 is no callback"),
        ({"config": 5}, ConfigError, r"config is int.*dict of options"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_name(tmp_path, model_dir, arguments, error, message):
    options = options_of(tmp_path)
    if "task" in arguments:
        options.pop("task.name")
    given = {"model": str(model_dir), "train_dataset": ROWS, "config": options, **arguments}
    with pytest.raises(error, match=message):
        SDFTTrainer(**given).train()
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_model_object_that_is_not_trained_as_it_is_is_refused(tmp_path, model_dir, tiny_model, tokenizer):
    with pytest.raises(ModelError, match=r"PeftModel.*merge_and_unload"):
        SDFTTrainer(get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear")), tokenizer, ROWS)
    with pytest.raises(ModelError, match=r"float16.*bfloat16"):
        SDFTTrainer(tiny_model(torch.float16), tokenizer, ROWS)
    with pytest.raises(ModelError, match="does not say where it came from"):
        SDFTTrainer(tiny_model(), None, ROWS)
    model, _ = load(model_dir)
    assert SDFTTrainer(model, None, ROWS, config=options_of(tmp_path)).config.model.name == str(model_dir)


ADAPTERS_OF_4 = LoraConfig(r=4)
NO_EFFECT = [
    ({}, {"model.name": "other/thing"}, r"model.name='other/thing'.*model is given"),
    ({"peft_config": ADAPTERS_OF_4}, {"lora.r": 32}, r"lora.r=32.*peft_config is given, and says 4"),
    ({"peft_config": ADAPTERS_OF_4}, {"lora.enabled": False}, r"lora.enabled=False.*peft_config"),
    ({"peft_config": ADAPTERS_OF_4}, {"lora": {"alpha": 64}}, r"lora.alpha=64"),
    ({}, {"data.path": "x.jsonl"}, r"data.path='x.jsonl'.*train_dataset is given"),
    ({}, {"data.name": "published:gsm8k"}, r"data.name='published:gsm8k'.*train_dataset"),
    ({"eval_dataset": ROWS}, {"eval.path": "x.jsonl"}, r"eval.path='x.jsonl'.*eval_dataset is given"),
    ({"eval_dataset": ROWS}, {"eval.path": "eval.jsonl"}, r"eval.path='eval.jsonl'.*eval_dataset is given"),
    ({"task": "free_form"}, {"task.name": "exact"}, r"task.name='exact'.*task is given, and says 'free_form'"),
    ({"task": is_said}, {"task.name": "exact"}, r"task.name='exact'.*task is given"),
    ({"task": is_said}, {"task.options": {"match": "contains"}}, r"task.options=.*task is given"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "message"), NO_EFFECT)
@pytest.mark.few(4)
def test_an_option_that_an_argument_takes_the_place_of_is_refused(tmp_path, model_dir, arguments, options, message):
    given = {"model": str(model_dir), "train_dataset": ROWS, **arguments}
    plain = {"train.output_dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=message):
        SDFTTrainer(**given, config={**plain, **options})
    with pytest.raises(ConfigError, match=message):
        SDFTTrainer(**given, config=load_config(**{**plain, **flat(options)}))
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({**flat(plain), **flat(options)}))
    with pytest.raises(ConfigError, match=message):
        SDFTTrainer(**given, config=file)


def flat(options: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: value for name, value in options.items() if name != "lora"},
        **{f"lora.{name}": value for name, value in options.get("lora", {}).items()},
    }


def test_options_that_say_what_the_arguments_say_are_no_contradiction(tmp_path, model_dir):
    options = {
        "train.output_dir": str(tmp_path / "run"), "model.name": str(model_dir), "lora.r": 4, "task.name": "exact",
        "task.options": {"match": "contains"}, "data.path": str(tmp_path / "run" / "data" / "train.jsonl"),
    }  # fmt: skip
    model, tokenizer = load(model_dir)
    for given in (str(model_dir), model):
        made = SDFTTrainer(given, tokenizer if given is model else None, ROWS, None, ADAPTERS_OF_4, "exact", options)
        assert made.config.task.options == {"match": "contains"}  # they go with the task's name


def test_options_beside_a_model_object_that_says_otherwise_are_refused(tmp_path, model_dir):
    model, tokenizer = load(model_dir)
    for name, value in {
        "model.name": "other/thing", "model.dtype": "bfloat16", "model.load_in_4bit": True,
        "model.attn_implementation": "flex_attention",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=rf"{name}=.*a model object is given"):
            SDFTTrainer(model, tokenizer, ROWS, config=options_of(tmp_path, **{name: value}))
    half = model.to(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"model.dtype='float32'.*says 'bfloat16'"):
        SDFTTrainer(half, tokenizer, ROWS, config=options_of(tmp_path, **{"model.dtype": "float32"}))


def test_values_of_a_program_are_taken_as_options(tmp_path, model_dir):
    options = options_of(tmp_path, **{
        "train.output_dir": tmp_path / "run", "train.seed": np.int64(3), "optim.lr": np.float32(0.5),
        "lora.target_modules": ("q_proj",), "eval.sets": [{"label": "a", "data": {"path": tmp_path / "x.jsonl"}}],
    })  # fmt: skip
    config = SDFTTrainer(model_dir, None, ROWS, config=options).config
    assert config.train.output_dir == str(tmp_path / "run")
    assert (config.train.seed, config.optim.lr, config.lora.target_modules) == (3, 0.5, ["q_proj"])
    assert config.eval.sets[0].data.path == str(tmp_path / "x.jsonl")
    with pytest.raises(ConfigError, match=r"train.output_dir=<object.*is object, which no option takes"):
        SDFTTrainer(model_dir, None, ROWS, config={"train.output_dir": object()})


def test_one_callback_or_none_and_a_tokenizer_by_name_are_taken(tmp_path, model_dir):
    model, _ = load(model_dir)
    watcher = Watcher()
    options = options_of(tmp_path)
    assert SDFTTrainer(model, model_dir, ROWS, config=options, callbacks=watcher).callbacks == [watcher]
    assert SDFTTrainer(model, str(model_dir), ROWS, config=options, callbacks=None).callbacks == []
    with pytest.raises(ModelError, match=r"tokenizer is int.*path or hub id"):
        SDFTTrainer(model, 5, ROWS, config=options)
    with pytest.raises(ModelError, match=r"'meta'.*no values.*from_pretrained"):
        SDFTTrainer(model.to("meta"), str(model_dir), ROWS, config=options)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("say one", {}, r"prompts is one text.*\['say one'\]"),
        ([{"role": "user", "content": "a"}], {}, r"prompts\[0\] is dict.*text of a user's turn"),
        (["a", 5], {}, r"prompts\[1\] is int"),
        (["a\ud83d"], {}, r"prompts\[0\] holds half a character at position 1"),
        (["a"], {"system": "\ud83d"}, r"system holds half a character"),
        (["a"], {"max_new_tokens": 0}, r"max_new_tokens=0 is not usable: it must be at least 1"),
        (["a"], {"max_new_tokens": -5}, r"max_new_tokens=-5"),
        (["a"], {"max_new_tokens": 3.5}, r"max_new_tokens=3.5.*whole number"),
        (["a"], {"temperature": -1}, r"temperature=-1 is not usable: it must be 0 or more"),
        (["a"], {"temperature": float("nan")}, r"temperature=nan"),
        (["a"], {"temperature": float("inf")}, r"temperature=inf"),
        (["a"], {"temperature": "hot"}, r"temperature='hot'"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_a_token_is_written(finished, prompts, options, message):
    with pytest.raises(SdftError, match=message):
        finished.sample(prompts, **options)


@pytest.mark.parametrize("options", [["--max_new_tokens", "-5"], ["--temperature", "-1"], ["--temperature", "nan"]])
def test_a_talk_with_numbers_out_of_bounds_does_not_begin(finished, options, capsys):
    run = str(finished.run.path)
    for command in (["chat", run], ["helpfulness", "export", run, "--output", f"{run}-answers.json"]):
        assert main([*command, *options]) == 2
        assert re.search(
            f"{options[0].removeprefix('--')}='?{options[1]}(\\.0)?'? is not usable", capsys.readouterr().err
        )


def test_one_process_alone_scores_and_keeps_models_of_memory(tmp_path, tiny_model, tokenizer, monkeypatch):
    trainer = SDFTTrainer(tiny_model(), tokenizer, ROWS, ROWS, config=options_of(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 were launched"):
        trainer.evaluate()
    with pytest.raises(ConfigError, match="cannot be trained by 2 processes"):
        trainer.train()


def test_options_are_taken_in_each_form(tmp_path, model_dir):
    path = write_run(tmp_path, model_dir, **{"optim.lr": 0.5})
    by_name = SDFTTrainer(config={"optim.lr": 0.5, "data.path": "x.jsonl"}).config
    by_section = SDFTTrainer(config={"optim": {"lr": 0.5}, "data": {"path": "x.jsonl"}}).config
    assert by_name == by_section
    assert SDFTTrainer(config=path).config == SDFTTrainer(config=load_config(path)).config
    assert SDFTTrainer(config=str(path)).config.optim.lr == 0.5
