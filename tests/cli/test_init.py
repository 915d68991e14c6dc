"""A first config for somebody's rows: it names the task that checks them, fits their lengths, and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy_sdft.cli.main import main
from onpolicy_sdft.config.load import load_config

ROWS: dict[str, dict[str, Any]] = {
    "math_word_problem": {"prompt": "Ann has {n} apples and buys 3.", "response": "{n} + 3 = {m}\nThe answer is {m}."},
    "function_call": {"prompt": "What is the weather in {n}?", "response": "weather(city='{n}')"},
    "multiple_choice": {"prompt": "Which? {n}\nA. x\nB. y", "response": "B", "choices": ["x", "y"], "answer": "B"},
    "python_code": {"prompt": "Return {n}.", "response": "def f():\n    return {n}", "tests": ["assert f() == {n}"]},
    "exact": {"prompt": "Say {n}.", "response": "word {n}"},
    "free_form": {
        "instruction": "Write about {n}.",
        "input": "",
        "output": "It was in 1999 that {n} of them went to sea.",
    },
}


def write(path: Path, row: dict[str, Any], number: int = 20) -> Path:
    def filled(value: Any, n: int) -> Any:
        if isinstance(value, list):
            return [filled(each, n) for each in value]
        return value.replace("{n}", str(n)).replace("{m}", str(n + 3))

    rows = [{name: filled(value, n) for name, value in row.items()} for n in range(number)]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.few(3)
def test_the_config_names_the_task_that_checks_the_rows(tmp_path, model_dir, monkeypatch, capsys, task):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "rows.jsonl", ROWS[task])
    assert main(["init", "--data.path", str(path), "--model.name", str(model_dir)]) == 0
    assert f"20 rows, task {task}: sdft.yaml is written" in capsys.readouterr().out
    config = load_config("sdft.yaml")
    assert (config.task.name, config.data.path, config.model.name) == (task, str(path), str(model_dir))
    assert config.train.batch_size == 5


def test_texts_that_only_the_teacher_sees_get_their_template(tmp_path, model_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(
        tmp_path / "rows.jsonl", {"prompt": "Who may enter room {n}?", "privileged_context": "Members of {n}."}
    )
    assert main(["init", "--data.path", str(path), "--model.name", str(model_dir)]) == 0
    config = load_config("sdft.yaml")
    assert (config.context.template, config.task.name) == ("privileged", "free_form")


def test_the_config_trains_as_it_stands(tmp_path, model_dir, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "it's mine: rows.jsonl", ROWS["exact"])
    given = ["--data.path", str(path), "--eval_path", str(path), "--model.name", str(model_dir), "--output_dir", "a b"]
    assert main(["init", *given]) == 0
    short = [
        "--train.max_steps=1", "--rollout.max_new_tokens=4", "--eval.kl_prompts=0", "--eval.sets=[]", "--eval.limit=2",
    ]  # fmt: skip
    assert main(["train", "--config", "sdft.yaml", *short]) == 0
    assert (tmp_path / "a b" / "model").is_dir()


def test_bad_rows_and_outliers_are_counted(tmp_path, model_dir, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "rows.jsonl", ROWS["function_call"], 300)
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "long " * 900, "response": "weather(city='x')"}) + "\n")
        file.write(json.dumps({"prompt": "broken", "response": "weather(city=<x>)"}) + "\n")
    assert main(["init", "--data.path", str(path), "--model.name", str(model_dir)]) == 0
    assert "1 rows cannot be read and are left out" in capsys.readouterr().out
    found = yaml.safe_load(Path("sdft.yaml").read_text())
    assert (found["data"]["on_bad_row"], found["context"]["on_too_long"]) == ("skip", "drop")
    assert found["context"]["max_student_tokens"] < 1000
    assert main(["init", "--data.path", str(path), "--model.name", str(model_dir)]) == 2
    assert "sdft.yaml is there already" in capsys.readouterr().err


def test_no_rows_and_no_source_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--output", "none/sdft.yaml"]) == 2
    assert "There is no folder none" in capsys.readouterr().err
    assert main(["init"]) == 2
    assert "exactly one of data.name and data.path" in capsys.readouterr().err
    assert not Path("sdft.yaml").exists()


def test_the_doctor_says_what_is_there(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("torch 2.", "memory", "cores", "gpu", "rollouts", "bfloat16", "[deepspeed]"):
        assert word in shown


@pytest.mark.parametrize("verb", ["train", "eval", "probe", "distill", "plan"])
@pytest.mark.few(2)
def test_help_fits_two_screens_and_the_rest_is_asked_for(capsys, verb):
    target = ["run"] if verb == "eval" else []
    with pytest.raises(SystemExit) as stopped:
        main([verb, *target, "--help"])
    assert stopped.value.code == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 70
    assert all(len(line) <= 120 for line in short.splitlines())
    assert "--train.max_steps" in short
    assert "SUPPRESS" not in short
    with pytest.raises(SystemExit) as stopped:
        main([verb, *target, "--help_all"])
    assert stopped.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 500


def test_a_file_of_test_rows_that_is_not_there_is_refused_before_it_is_written(tmp_path, capsys):
    target = tmp_path / "sdft.yaml"
    assert main(["init", "--data.path", "rows.jsonl", "--eval_path", "/nope.jsonl", "--output", str(target)]) == 2
    assert "--eval_path /nope.jsonl: there is no such file" in capsys.readouterr().err
    assert not target.exists()
