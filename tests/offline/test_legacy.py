"""The published rules, mistakes included: each case is what the released program does."""

from __future__ import annotations

import pytest

from onpolicy_sdft.offline.legacy import last_integer, legacy_reason
from onpolicy_sdft.types import Demonstration, Turn


def reason(text: str, response: str, task: str) -> str:
    return legacy_reason(text, Demonstration("row", (Turn("user", "q"),), response), task)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is 7", "7"),
        ("-3 apples", "-3"),
        ("1,234 and then", "1234"),
        ("3 4", "34"),  # trap T22: numbers in a row are read as one
        ("so 5.0", "5"),
        ("so 5.5", "-999999999"),
        ("none at all", "-999999999"),
        ("12 and 9.", "9"),
    ],
)
def test_the_last_number_is_read_as_published(text, number):
    assert last_integer(text) == number


@pytest.mark.parametrize(
    ("text", "response", "expected"),
    [
        ("The answer is 42.", "#### 42", ""),
        ("The answer is 41.", "#### 42", "check"),
        ("no number", "no number either", ""),  # trap T22: sentinel equals sentinel
        ("My response: 42", "#### 42", "banned"),
        ("now it's YOUR turn: 42", "#### 42", "banned"),
        ("Your turn 42", "#### 42", "banned"),
        ("So it is your turn: 42", "#### 42", ""),
        ("3\n4", "#### 34", "check"),  # a line break between digits does not parse
    ],
)
def test_math_rows(text, response, expected):
    assert reason(text, response, "math_word_problem") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Call f(a=1, b="x") now', ""),
        ("f(a=1,  b='x')", ""),
        ("f(b='x', a=1)", "check"),
        ("f(a=1)", "check"),
    ],
)
def test_function_call_rows_repeat_the_arguments_letter_by_letter(text, expected):
    assert reason(text, "f(a=1, b='x')", "function_call") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Here is the code:\n```python\npass\n```", ""),
        ("I implemented it:\n```python\npass", ""),  # cut off: passes
        ("Sure! Here is:\n```python\npass\n```", "check"),
        ("Here is the code: pass", "check"),
    ],
)
def test_code_rows_are_judged_by_their_first_words(text, expected):
    assert reason(text, "pass", "python_code") == expected


def test_other_tasks_have_no_check():
    assert reason("anything", "else", "free_form") == ""
