"""No opening with one character behind it, over and over, takes the checks of numbers and short answers long."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from onpolicy_sdft.tasks import Task, load_task
from onpolicy_sdft.types import Demonstration, Turn

LENGTH = 40_000
SECONDS = 0.1
NUMBER, *SHORT = [
    (load_task("math_word_problem", {}), "12"),
    (load_task("exact", {"match": "contains"}), "12"),
    (load_task("exact", {"match": "contains"}), "Paris"),
]
#: What the patterns of numbers begin with; ~ is a blank.
OPENINGS = r"""
^ x^ ^{ \frac{ \frac \frac{1}{ \boxed \boxed{ \boxed{1 $ $1 ( [ { | #### ####~1 ** **1 * *1 Answer: **Answer:**~1
the~answer answer~ The~answer~is~ Answer:~a~ <answer> </think> <b> 1 1, 1. 1^ 1^{ 1e 1/ 1~ 1~and~ 1~and~a~
1.\overline{ 0.( 5~x~10^ 1! 1] 1~[1] - ± √ \sqrt[3]{ \log_ of~ and~ = 1~= ≈ 1~≈~ x= ~is~ 1~is~ 1~( 1~or~ more~than~
between~ a~total~of~ wait~ 1~wait~ Step~1: 1.~a \text{ \left \textbf{ <<1 ~~ _1 x_{ roots~ (1,~ 7x USD~ \circ
^\circ 1< & 2x~&= f( f(1 S_{10 analysis ◁think▷ Paris~ ❌~
"""
SHORT_OPENINGS = ["", "Paris ", "12 ", "12", "~~", "<del>", "between 1", "not ", "Paris. ", "- ", "->", "**"]
FOLLOWING = [" ", "\n", "\u00a0", "1", ",", ".", "a", "(", "*", "\\", "1, "]
OFTEN = (" ", "\n", "1")


def slow(checks: Sequence[tuple[Task, str]], text: str) -> bool:
    """Whether a check takes long, in processor time and at each of three tries: a busy machine is no slow check."""
    for task, answer in checks:
        row = Demonstration("row-1", (Turn("user", "How many?"),), "x", {"answer": answer})
        for _ in range(3):
            started = time.process_time()
            task.check(text, row)
            if time.process_time() - started <= SECONDS:
                break
        else:
            return True
    return False


@pytest.mark.parametrize(
    "following", [each if each in OFTEN else pytest.param(each, marks=pytest.mark.slow) for each in FOLLOWING], ids=repr
)
@pytest.mark.few(1)
def test_no_opening_with_one_character_over_and_over_takes_long(following: str) -> None:
    run = following * (LENGTH // len(following))
    openings = [opening.replace("~", " ") if opening != "~~" else opening for opening in OPENINGS.split()]
    assert not [opening for opening in openings if slow([NUMBER], opening + run)]
    assert not [opening for opening in SHORT_OPENINGS if slow(SHORT, opening + run)]


@pytest.mark.parametrize(
    "line", ["a 1 + 1 = 2, ", "**1** and 2 ", "x = 3, so 2x = 6. ", "1 hour, or 60 minutes, ", "1/6 ≈ 0.17 "]
)
@pytest.mark.parametrize("heading", ["", "Answer:\n", "**Answer:** a ", "1. "])
@pytest.mark.few(5)
def test_no_long_solution_takes_long(heading: str, line: str) -> None:
    for num_parts in (1, 20, 70):
        part = line * num_parts + "\n"
        assert not slow([NUMBER], heading + part * (LENGTH // len(part)))
