"""Rows with a text that only the teacher sees: it is shown, never learned, and nothing stands in for refused texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import write_run

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.errors import ConfigError, DataError
from onpolicy_sdft.runs.files import read_jsonl

HINT = "Whatever is said, blue is meant."
CHECK = "def check(prompt, completion, row):\n    return len(completion) {} 0\n"


def config_of(folder: Path, model: Path, rows: list[dict[str, Any]], check: str = ">=", **options: Any) -> Any:
    (folder / "check.py").write_text(CHECK.format(check))
    given = {
        "task.name": f"{folder / 'check.py'}:check", "screening.check": "fallback", "screening.truncated": "keep",
        "context.template": "privileged", "data.privileged_column": "hint", "rollout.max_new_tokens": 6,
        "train.max_steps": 2, "train.output_dir": folder / "run", "eval.kl_prompts": 0, "probe.action": "warn",
        "gate.rows": 0, "screening.empty": "keep", **options,
    }  # fmt: skip
    config = write_run(folder, model, **given)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_config(config)


def run(config: Any) -> list[dict[str, Any]]:
    return read_jsonl(fit(config, ["sdft", "train"]).run.path / "rollouts.jsonl")


def rows_of(**more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"Which colour is {name}?", "hint": HINT, **more} for name in ("one", "two", "three", "four")]


def test_what_is_kept_is_learned(tmp_path: Path, model_dir: Path) -> None:
    seen = run(config_of(tmp_path, model_dir, rows_of()))
    assert {row["verdict"] for row in seen} == {"keep"}
    assert {row["demonstration"] for row in seen} == {HINT}


def test_what_is_refused_is_dropped_and_the_text_is_never_learned(tmp_path: Path, model_dir: Path) -> None:
    seen = run(config_of(tmp_path, model_dir, rows_of(), check="<"))
    assert {(row["verdict"], row["reason"]) for row in seen} == {("drop", "check")}
    assert not any(HINT in row["target"] for row in seen)


def test_a_response_beside_it_is_learned_in_place_of_refused_texts(tmp_path: Path, model_dir: Path) -> None:
    seen = run(config_of(tmp_path, model_dir, rows_of(response="blue"), check="<"))
    assert {(row["verdict"], row["target"]) for row in seen} == {("fallback", "blue")}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train.targets": "demonstrations"}, DataError, "4 rows have a text for the teacher but no response"),
        ({"objective.demonstration_weight": 0.5}, DataError, "but no response.*--objective.demonstration_weight 0"),
        ({"context.template": "reference"}, ConfigError, "shows the teacher a text as an answer.*template privileged"),
        ({"context.show": "others"}, ConfigError, "context.show=others: rows have no response"),
        ({"data.privileged_column": None}, DataError, "no column 'response'"),
        ({"data.privileged_column": "rules"}, DataError, "row 1: no column 'rules'"),
        ({"task.name": "exact"}, DataError, "hold no answer"),
    ],
)
def test_what_it_cannot_serve_is_refused(
    tmp_path: Path, model_dir: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit(config_of(tmp_path, model_dir, rows_of(), **options), ["sdft", "train"])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Which?", "privileged_context": HINT},
        {"prompt": [{"role": "user", "content": "Which?"}], "privileged_context": HINT},
        {"messages": [{"role": "user", "content": "Which?"}], "hint": HINT},
    ],
)
@pytest.mark.few(1)
def test_rows_of_other_trainers_are_read(tmp_path: Path, model_dir: Path, row: dict[str, Any]) -> None:
    column = "hint" if "hint" in row else None
    seen = run(config_of(tmp_path, model_dir, [row] * 1, **{"data.privileged_column": column, "train.batch_size": 1}))
    assert {(each["prompt"], each["demonstration"]) for each in seen} == {("Which?", HINT)}
