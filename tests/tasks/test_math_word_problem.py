from __future__ import annotations

from fractions import Fraction

import pytest

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.math_word_problem import final_number
from onpolicy_sdft.types import Demonstration, Turn

TASK = load_task("math_word_problem", {})


def demonstration(response: str, **fields: object) -> Demonstration:
    return Demonstration("row-1", (Turn("user", "How many?"),), response, fields)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 18.", 18),
        ("18.00 dollars", 18),
        ("3.5 kg", Fraction(7, 2)),
        (".5", Fraction(1, 2)),
        ("It costs $1,234.50", Fraction(2469, 2)),
        ("10,000,000 people", 10_000_000),
        ("70\u202f000", 70_000),
        (r"\$1{,}800", 1800),
        ("50%", 50),
        ("18kg", 18),
        ("USD18", 18),
        ("$18/day", 18),
        ("x = -3", -3),
        ("(-3)", -3),
        ("-$5", -5),
        ("$-5", -5),
        ("- $5", -5),
        ("\u22125 degrees", -5),
        ("3/4 of the cake", Fraction(3, 4)),
        ("1 3/4 cups", Fraction(7, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
    ],
)
def test_a_number_is_read_over_separators_units_and_signs(text: str, number: Fraction | int) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 4", 4),
        ("The answer is 3 4", 3),
        ("1,2,3", 3),
        ("between 3-4", 4),
        ("16-3", 3),
        ("16 - 3", 3),
        ("-3-4", 4),
        ("5%-3", 3),
    ],
)
def test_neighbouring_numbers_are_not_joined_and_an_operator_is_not_a_sign(text: str, number: int) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It takes 5 days. The answer is 18. There are 7 days in a week.", 18),
        ("#### 18\nThat is 3 * 6 = 18 over 2 days", 18),
        (r"\boxed{18} is right, since 2 is even", 18),
        (r"so \boxed{\frac{1}{2}} of 5", Fraction(1, 2)),
        ("The answer is 5. Wait, no. The answer is 6.", 6),
        ("The answer is **18**.", 18),
        ("The final answer is:\n\n18", 18),
        ("Answer: 12 apples in 3 bags", 12),
        ("The answer is $18$.", 18),
        ("The answer is 3 + 4 = 7.", 7),
        ("The answer is 18 = 9 * 2.", 18),
        ("The answer is 2 + 2 = 1 + 3 = 4 (of 10)", 4),
        ("The answer is x = 7", 7),
        ("The answer is 18 because 5 + 6 = 11.", 18),
        ("The answer is easy: we add and find 18", 18),
    ],
)
def test_the_number_after_the_last_marker_counts(text: str, number: Fraction | int) -> None:
    assert final_number(text) == number


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
