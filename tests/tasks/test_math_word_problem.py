from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.stated_number import final_number
from onpolicy_sdft.types import Demonstration, Turn

TASK = load_task("math_word_problem", {})
ANSWERS = Path(__file__).with_name("answers") / "math_word_problem.jsonl"


def demonstration(response: str, **fields: object) -> Demonstration:
    return Demonstration("row-1", (Turn("user", "How many?"),), response, fields)


def answers() -> list[tuple[str, Fraction | None]]:
    """Texts with the number people read out of them; None: there is no single one."""
    with ANSWERS.open() as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["text"], None if row["value"] is None else Fraction(row["value"])) for row in rows]


@pytest.mark.parametrize(("text", "number"), answers())
def test_a_number_is_read_as_it_is_written_or_not_at_all(text: str, number: Fraction | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(("text", "number"), [each for each in answers() if each[1] is not None])
def test_the_check_accepts_a_value_in_every_spelling_and_never_its_negative(text: str, number: Fraction) -> None:
    assert TASK.check(text, demonstration("?", answer=f"{number}")).correct
    assert number == 0 or not TASK.check(text, demonstration("?", answer=f"{-number}")).correct


@pytest.mark.parametrize("value", [1e-05, 1e16, 0.1, 12.0, -3, Decimal("2.50"), np.float64(0.25), np.int64(7)])
def test_a_number_in_the_answer_column_is_that_number(value: Any) -> None:
    row = demonstration("?", answer=value)
    TASK.check_demonstration(row)
    assert TASK.check(f"The answer is {Fraction(str(value))}.", row).correct
    assert TASK.check(TASK.reference_answer(row), row).correct
    assert not TASK.check("The answer is 5.", row).correct


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, [4]])
def test_a_column_without_a_value_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"row-1.*'answer'"):
        TASK.check_demonstration(demonstration("?", answer=value))


@pytest.mark.parametrize("text", ["", "none", "5 + 6 = 11. The answer is unknown.", "3/0", "7" * 500, "The answer is"])
def test_a_text_without_a_stated_number_has_none(text: str) -> None:
    assert final_number(text) is None


def test_two_unparseable_answers_are_never_equal() -> None:
    unparseable = demonstration("The answer is unknown.")
    with pytest.raises(DataError, match=r"row-1.*no number"):
        TASK.check_demonstration(unparseable)
    with pytest.raises(DataError, match="row-1"):
        TASK.check("The answer is unknown.", unparseable)
    result = TASK.check("no idea", demonstration("The answer is 3."))
    assert (result.correct, result.reason) == (False, "no_number")


def test_equal_values_in_other_notation_are_right() -> None:
    row = demonstration("The answer is 1,200.50.")
    assert TASK.check("So 2401/2", row).correct
    assert TASK.check("$1200.5", row).correct
    wrong = TASK.check("The answer is 1200.", row)
    assert (wrong.correct, wrong.reason, wrong.answer) == (False, "wrong_answer", "1200")


def test_values_are_compared_exactly() -> None:
    row = demonstration("The answer is 0.3.")
    assert not TASK.check("0.30000000000000001", row).correct
    assert not TASK.check("0.29999999999999999", row).correct
    assert TASK.check("3/10", row).correct


@pytest.mark.parametrize(
    "row",
    [
        demonstration("2 + 2 = 4\nThe answer is 4."),
        demonstration("Four.", answer=4),
        demonstration("Some", answer="1/3"),
        demonstration("Some", answer="-2,000.25"),
        demonstration("It is 4 for 2 people", answer="4"),
        demonstration("Some", answer="2 + 2 = <<2+2=4>>4\n#### 4"),
    ],
)
def test_the_reference_answer_passes(row: Demonstration) -> None:
    TASK.check_demonstration(row)
    assert TASK.check(TASK.reference_answer(row), row).correct


def test_a_response_that_contradicts_the_answer_field_is_refused() -> None:
    with pytest.raises(DataError, match="says 5 but the response states 4"):
        TASK.check_demonstration(demonstration("The answer is 4.", answer=5))


def test_an_answer_field_that_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"row-1.*'answer'"):
        TASK.check_demonstration(demonstration("4", answer=[4]))


def test_another_answer_field_can_be_named() -> None:
    task = load_task("math_word_problem", {"answer_field": "gold"})
    assert task.check("7", demonstration("?", gold=7)).correct


def test_the_wording_names_the_sentence_the_check_looks_for() -> None:
    assert TASK.ask("How many?").startswith("How many?\n")
    assert "The answer is" in TASK.ask("How many?")
