"""Every task has a table of answers as models write them, right and wrong ones, large enough to say something."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from onpolicy_sdft.tasks import TASKS

TABLES = Path(__file__).with_name("answers")
#: Any text that says something is right there: what is told apart is nothing from something, in 22 rows.
NO_CHECK = {"free_form"}
LEAST = 60


def kind_of(row: dict[str, Any]) -> str:
    """Tell what a row's text is: a right answer, a wrong one, or one that nobody can read as a single answer."""
    for key in ("value", "label"):  # what is read out of the text
        if key in row:
            return "ambiguous" if row[key] is None else "right"
    if "reason" in row:
        return {"": "right", "several_calls": "ambiguous"}.get(row["reason"], "wrong")
    return "right" if row["correct" if "correct" in row else "safe"] else "wrong"


def table(task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TABLES / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_task_has_a_table() -> None:
    assert {path.stem for path in TABLES.glob("*.jsonl")} == set(TASKS)


@pytest.mark.parametrize("task", sorted(set(TASKS) - NO_CHECK))
def test_a_table_has_enough_answers_of_each_kind(task: str) -> None:
    kinds = Counter(kind_of(row) for row in table(task))
    assert kinds.total() >= LEAST
    assert kinds["right"] >= LEAST // 4
    assert kinds["wrong"] + kinds["ambiguous"] >= LEAST // 4
    if task in ("math_word_problem", "multiple_choice", "function_call"):  # those that read one answer out of a text
        assert kinds["ambiguous"] >= 5


@pytest.mark.parametrize("task", sorted(TASKS))
def test_no_row_of_a_table_stands_there_twice(task: str) -> None:
    rows = Counter(json.dumps(row, sort_keys=True) for row in table(task))
    assert not [row for row, times in rows.items() if times > 1]
