"""What opens something, with one character behind it for as long as an answer may be, takes no check long."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.code_text import programs
from onpolicy_sdft.types import Demonstration, Turn

LENGTH = 40_000  # bytes, about 8,000 tokens
SECONDS = 0.1
PROMPT = "Functions: f(x: int). Options: A. Paris B. London C. 12. Which?"
CHECKS = [
    (load_task(name, {}), Demonstration("row-1", (Turn("user", PROMPT),), response, fields))
    for name, response, fields in (
        ("multiple_choice", "A", {"choices": ["Paris", "London", "12"], "answer": "A"}),
        ("function_call", "f(x=1)", {}),
        ("refusal", "I cannot help with that.", {}),
    )
]
#: Where a blank is part of one, it is written "~".
OPENINGS = r"""
``` ```python ```python\nx=1\n``` ~~~ ` ' " ''' '''python\n ( [ { < f( f(x= f(x=' f(x=''' f(x=[ {" {' :~'{
{"name":~"f",~"arguments":~{"
<tool_call> <tool_call>{" <function=f><parameter=x> <arg_key>x</arg_key><arg_value> <invoke~name="f"> call: call:f{
call:f{x:<escape> to=functions.f f\_ **f <code> <pre><code> <!-- Tool:~f Wrong: not~ since~I~ without~ def~f(x): >>>
Answer: the~answer~is the~answer~is~not~A. to~find~the~answer: each~option: So~ I~choose~ \boxed{ \frac{ <answer>
A A, A. (A) A:~no\n A~is While~ Paris 1* ** __ “ ‘ ✅~ A~wait,~ I~cannot I'm~an~ai I~won't~be sorry, request
"""
BEHIND = [*" \t\n\u00a01a([]{\"'\\*_`", '\\"', ", "]
OFTEN = (" ", "a")


def openings() -> Iterator[str]:
    yield '"' * 3
    for each in OPENINGS.split():
        yield (each if set(each) == {"~"} else each.replace("~", " ")).replace("\\n", "\n")


def slow_checks(text: str) -> set[str]:
    """Return the checks that take long in processor time: a busy machine is no slow check."""
    found = set()
    for task, row in CHECKS:
        started = time.process_time()
        task.check(text, row)
        if time.process_time() - started > SECONDS:
            found.add(task.name)
    started = time.process_time()
    programs(text)
    return found | ({"programs"} if time.process_time() - started > SECONDS else set())


@pytest.mark.parametrize(
    "behind", [each if each in OFTEN else pytest.param(each, marks=pytest.mark.slow) for each in BEHIND], ids=repr
)
@pytest.mark.few(1)
def test_openings_that_nothing_closes_take_no_check_long(behind: str) -> None:
    slow = []
    for opening in openings():
        text = opening + behind * (LENGTH // len(behind.encode())) + ("" if behind == "\\" else "x")
        found = slow_checks(text)
        for _ in range(3):
            found = found and found & slow_checks(text)
        slow += [(opening, name) for name in found]
    assert not slow
