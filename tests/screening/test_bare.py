from __future__ import annotations

import dataclasses

import pytest

from onpolicy_sdft.screening.bare import BareAnswer, BareAnswers, num_steps
from onpolicy_sdft.screening.reasons import is_answer_only

WORK = "First add 3 and 4.\nThat is 7. Then double it: 14. So the answer is 14."


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("The answer is 72.", 1),
        ("", 0),
        ("...\n\n--\n", 0),
        (WORK, 5),
        ("3.5 apples cost $1.50", 1),
        ("def f(x):\n    return x + 1\n", 2),
    ],
)
def test_steps_are_sentences_and_lines_that_say_something(text, steps):
    assert num_steps(text) == steps


def answer(num_tokens: int, *, correct: bool, surprise: float = 0.2) -> BareAnswer:
    return BareAnswer(num_tokens, WORK, surprise, correct)


def test_lengths_are_those_of_right_answers_where_there_are_enough():
    right, wrong = [answer(n, correct=True) for n in (90, 100, 110)], [answer(n, correct=False) for n in (10, 20)]
    found = BareAnswers.of([*wrong, *right])
    assert (found.length, found.num, found.num_right, found.of_right) == (100.0, 5, 3, True)
    found = BareAnswers.of([*wrong, right[0]])
    assert (found.length, found.of_right) == (20.0, False)


def test_surprise_is_that_of_all_answers():
    found = BareAnswers.of([answer(9, correct=False, surprise=s / 10) for s in range(11)])
    assert found.surprise == pytest.approx(0.5)
    assert found.surprise_high == pytest.approx(0.9)
    assert found.figures() == {"bare/score": 0.0, "bare/length": 9.0, "bare/surprise": found.surprise}


BARE = BareAnswers(num=16, num_right=4, length=192.0, num_steps=12.0, surprise=0.17, surprise_high=0.22)


@pytest.mark.parametrize("num_demonstration", [5, 40, 128])
def test_an_answer_without_the_work_is_told_however_long_the_demonstration_is(num_demonstration):
    assert is_answer_only(8, 1, num_demonstration, BARE, 0.25)
    assert not is_answer_only(120, 8, num_demonstration, BARE, 0.25)


def test_a_short_text_with_as_many_steps_is_no_bare_answer():
    assert not is_answer_only(40, 9, 128, BARE, 0.25)


def test_a_terse_right_answer_passes_where_bare_answers_are_wrong_and_chatty():
    chatty = dataclasses.replace(BARE, num_right=0)
    assert not is_answer_only(30, 1, 30, chatty, 0.25)
    assert is_answer_only(8, 1, 128, chatty, 0.25)
