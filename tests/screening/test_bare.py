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
        (WORK, 4),
        ("3.5 apples cost $1.50", 1),
        ("Answer: 72.", 1),
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
    assert found.length_score == found.score == 0.6
    found = BareAnswers.of([*wrong, right[0]])
    assert (found.length, found.of_right) == (20.0, False)


def test_surprise_is_that_of_all_answers():
    found = BareAnswers.of([answer(9, correct=False, surprise=s / 10) for s in range(11)])
    assert found.surprise == pytest.approx(0.5)
    assert found.surprise_high == pytest.approx(0.9)
    assert found.figures() == {
        "bare/score": 0.0, "bare/of_right": 0.0, "bare/length": 9.0, "bare/surprise": found.surprise,
    }  # fmt: skip


BARE = BareAnswers(
    num=16, num_right=4, length=192.0, num_steps=12.0, of_right=True, length_score=0.25, surprise=0.17,
    surprise_high=0.22,
)  # fmt: skip


def test_a_policy_that_gets_worse_does_not_become_the_measure():
    collapsed = dataclasses.replace(BARE, num_right=0, length=8.0, num_steps=1.0, of_right=False, length_score=0.0)
    found = collapsed.after(BARE)
    assert (found.length, found.num_steps, found.of_right, found.num_right) == (192.0, 12.0, True, 0)
    assert collapsed.after(found).length == 192.0
    better = dataclasses.replace(BARE, num_right=6, length=120.0, length_score=6 / 16)
    assert better.after(BARE) == better
    assert BARE.after(None) == BARE


@pytest.mark.parametrize("num_demonstration", [20, 40, 128])
def test_an_answer_without_the_work_is_told_from_work(num_demonstration):
    assert is_answer_only(8, 1, num_demonstration, BARE, 0.25)
    assert is_answer_only(9, 2, num_demonstration, BARE, 0.25), "an answer of two lines"
    assert not is_answer_only(120, 8, num_demonstration, BARE, 0.25)


def test_data_that_asks_for_answers_alone_gets_them():
    assert not is_answer_only(8, 1, 5, BARE, 0.25)
    assert not is_answer_only(8, 1, 16, BARE, 0.25)


def test_a_short_text_with_as_many_steps_is_no_bare_answer():
    assert not is_answer_only(40, 9, 128, BARE, 0.25)


def test_a_terse_right_answer_passes_where_bare_answers_are_wrong_and_chatty():
    chatty = dataclasses.replace(BARE, num_right=0, of_right=False)
    assert not is_answer_only(30, 1, 30, chatty, 0.25)
    assert is_answer_only(8, 1, 128, chatty, 0.25)
