from __future__ import annotations

import pytest

from onpolicy_sdft.data.neighbours import choose_neighbours
from onpolicy_sdft.types import Demonstration, Turn


def rows(*prompts: str) -> list[Demonstration]:
    return [Demonstration(f"id-{i}", (Turn("user", prompt),), "answer") for i, prompt in enumerate(prompts)]


FRUIT = rows(
    "how many red apples are in the box",
    "name the capital of France",
    "how many green apples are in the box",
    "name the capital of Norway",
    "how many apples fell from the tree",
)


def test_no_neighbours_are_chosen_when_none_are_asked_for():
    assert choose_neighbours(FRUIT, 0, "random", seed=0) == [()] * 5


@pytest.mark.parametrize("how", ["random", "nearest"])
def test_an_example_is_never_its_own_neighbour_nor_one_with_its_prompt(how):
    twins = rows("same words", "same words", "other words", "third thing")
    found = choose_neighbours(twins, 3, how, seed=0)
    assert [set(others) for others in found] == [{2, 3}, {2, 3}, {0, 1, 3}, {0, 1, 2}]


def test_the_nearest_by_word_overlap_stands_last_next_to_the_question():
    found = choose_neighbours(FRUIT, 2, "nearest", seed=0)
    assert found[0] == (4, 2)
    assert found[1][-1] == 3
    assert found[3][-1] == 1


def test_random_neighbours_depend_on_seed_and_id_and_on_nothing_else():
    many = rows(*(f"question {i}" for i in range(40)))
    found = choose_neighbours(many, 3, "random", seed=1)
    assert found == choose_neighbours(many, 3, "random", seed=1)
    assert found != choose_neighbours(many, 3, "random", seed=2)
    assert len(set(found)) > 30
    assert all(len(set(others)) == 3 for others in found)


def test_a_prompt_that_fills_most_of_the_set_still_finds_the_others():
    crowded = rows(*["the same"] * 60, "one", "two")
    found = choose_neighbours(crowded, 2, "random", seed=0)[:60]
    assert {frozenset(others) for others in found} == {frozenset((60, 61))}


def test_prompts_without_a_word_have_neighbours_too():
    assert [len(others) for others in choose_neighbours(rows("?", "!", "..."), 2, "nearest", seed=0)] == [2, 2, 2]
