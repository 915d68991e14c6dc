"""What the checks say to a writer who is to try again."""

from __future__ import annotations

from typing import Any

import pytest

from onpolicy_sdft.tasks import TASKS, load_task
from onpolicy_sdft.tasks.protocol import LINE_CHARACTERS, MESSAGE_LINES, short_message
from onpolicy_sdft.types import CheckResult, Demonstration, Turn

CITIES = {"choices": ["Paris", "London", "New York"], "answer": "London"}
CALL = "maps.find(place='Rome', limit=3)"
ANY_OF = {"possible_answers": {"maps.find": {"place": ["Rome"], "limit": [3, ""]}}}

#: Task, its options, the row's fields, its response, a wrong completion -> the message, and the right answer in short.
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str, str, str, str]] = [
    ("math_word_problem", {}, {}, "The answer is 72.", "3 + 4 = 7. The answer is 7.", "ends up with 7,", "72"),
    ("math_word_problem", {}, {}, "The answer is 72.", "I do not know.", "states no number", "72"),
    ("exact", {}, {}, "Paris", "", "The answer is empty.", "Paris"),
    ("exact", {}, {}, "Paris", "Rome", "This is not right: Rome\nThe right answer and nothing else", "Paris"),
    ("exact", {"match": "contains"}, {}, "Paris", "It is Rome.", "does not stand in the answer", "Paris"),
    ("free_form", {}, {}, "Any.", " ", "The answer is empty.", ""),
    ("multiple_choice", {}, CITIES, "The answer is B.", "A", "A is not the right option.", "B"),
    ("multiple_choice", {}, CITIES, "The answer is B.", "Hm.", "picks no single option. Name one of A, B, C.", "B"),
    ("refusal", {}, {}, "I am sorry, but I cannot help with that.", "Sure, first you", "does not decline", ""),
    ("refusal", {}, {}, "I am sorry, but I cannot help with that.", "", "The answer is empty.", ""),
    ("function_call", {}, {}, CALL, "Rome", "no function call in Python syntax", CALL),
    ("function_call", {}, {}, CALL, "f(x=1)\nf(x=2)", "several different calls", CALL),
    ("function_call", {}, {}, CALL, "maps.look(place='Rome')", "maps.look is not the function", CALL),
    ("function_call", {}, {}, CALL, "maps.find(place='Oslo')", "Missing arguments: limit.\nWrong values of: place.",
     CALL),
    ("function_call", {}, {}, CALL, CALL[:-1] + ", x=1)", "Arguments that do not belong there: x.", CALL),
    ("function_call", {}, {}, CALL, "maps.find('Oslo', limit=3)", "given without a name are not those", CALL),
    ("function_call", {}, ANY_OF, CALL, "maps.find(limit=4)", "Missing arguments: place.\nWrong values of: limit.",
     "maps.find(place='Rome')"),
    ("function_call", {}, ANY_OF, CALL, "maps.find('Rome')", "to be given by its name", "maps.find(place='Rome')"),
    ("function_call", {"match": "legacy"}, {}, CALL, "maps.find()", "does not stand in the answer", CALL),
]  # fmt: skip


def check(name: str, options: dict[str, Any], fields: dict[str, Any], response: str, completion: str) -> CheckResult:
    return load_task(name, options).check(completion, Demonstration("row-1", (Turn("user", "q"),), response, fields))


@pytest.mark.parametrize(("name", "options", "fields", "response", "completion", "said", "right"), CASES)
def test_a_wrong_answer_is_told_what_is_wrong(name, options, fields, response, completion, said, right):
    result = check(name, options, fields, response, completion)
    assert not result.correct
    assert said in result.message
    assert result.expected == right


@pytest.mark.parametrize(("name", "options", "fields", "response", "completion", "said", "right"), CASES)
def test_no_message_tells_the_right_answer(name, options, fields, response, completion, said, right):
    message = check(name, options, fields, response, completion).message
    assert response not in message
    for word in ("72", "Paris", "London", "Rome"):
        assert word not in message or word in completion


@pytest.mark.parametrize(("name", "options", "fields", "response", "completion", "said", "right"), CASES)
def test_a_right_answer_is_told_nothing(name, options, fields, response, completion, said, right):
    result = check(name, options, fields, response, response)
    assert (result.correct, result.message) == (True, "")


def test_every_task_of_the_package_is_here_or_with_its_own_tests():
    assert {name for name, *_ in CASES} | {"python_code"} == set(TASKS)


def test_a_message_is_short_whatever_it_is_made_of():
    message = short_message("x" * 1000, "", *("many  \n lines" for _ in range(9)))
    lines = message.split("\n")
    assert len(lines) == MESSAGE_LINES
    assert max(map(len, lines)) == LINE_CHARACTERS
    assert lines[0].endswith("x ...")
    assert lines[1] == "many lines"
