"""Every reference of the real data sets passes its own check, or is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.types import Demonstration, Turn

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def rows(name: str) -> list[Demonstration]:
    path = DATA / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with path.open() as lines:
        loaded = [json.loads(line) for line in lines]
    return [
        Demonstration(f"{number}", (Turn("user", row["prompt"]),), row["response"])
        for number, row in enumerate(loaded, start=1)
    ]


@pytest.mark.parametrize("name", ["gsm8k_train", "gsm8k_test"])
def test_every_gsm8k_response_passes_its_own_check(name: str) -> None:
    task = load_task("math_word_problem", {})
    for row in rows(name):
        task.check_demonstration(row)
        assert task.check(task.reference_answer(row), row).correct
        stated = row.response.rsplit("The answer is ", 1)[1].rstrip(".").replace(",", "")
        assert task.check(row.response, row).answer == stated


# Rows whose reference has a placeholder such as ``token=<token>``, which is not Python.
PLACEHOLDERS = {"openfunctions_train": {"35", "203", "257"}, "openfunctions_test": set[str]()}


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_every_openfunctions_response_passes_its_own_check_or_is_named(name: str) -> None:
    task = load_task("function_call", {})
    refused = set()
    for row in rows(name):
        try:
            task.check_demonstration(row)
        except DataError:
            refused.add(row.example_id)
        else:
            assert task.check(task.reference_answer(row), row).correct
            assert task.check(f"Here you are:\n```\n{row.response}\n```", row).correct
    assert refused == PLACEHOLDERS[name]


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_every_openfunctions_response_passes_its_own_legacy_check(name: str) -> None:
    task = load_task("function_call", {"match": "legacy"})
    for row in rows(name):
        task.check_demonstration(row)
        assert task.check(task.reference_answer(row), row).correct


@pytest.mark.parametrize("name", ["gsm8k_test", "openfunctions_test"])
def test_the_answer_of_another_row_is_wrong(name: str) -> None:
    task = load_task("math_word_problem" if "gsm" in name else "function_call", {})
    loaded = rows(name)
    pairs = zip(loaded, [*loaded[1:], loaded[0]], strict=True)
    same = sum(task.check(other.response, row).correct for row, other in pairs)
    assert same <= 0.05 * len(loaded)  # a few neighbours happen to share an answer
