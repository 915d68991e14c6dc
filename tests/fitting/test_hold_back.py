"""Rows are held back by what is asked, not by how it is typed."""

from __future__ import annotations

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.data.sources import DemonstrationSet
from onpolicy_sdft.fitting.held_out import hold_back
from onpolicy_sdft.tasks.exact import Exact
from onpolicy_sdft.types import Demonstration, Turn


def held(*questions: tuple[str, ...], rows: int = 8) -> list[tuple[str, ...]]:
    made = tuple(
        Demonstration(str(number), tuple(Turn("user", text) for text in texts), "4")
        for number, texts in enumerate(questions)
    )
    config = load_config(**{"gate.rows": rows})
    _, found = hold_back(config, Exact(), DemonstrationSet(made, "rows", (), "0"))
    return [tuple(turn.content for turn in row.turns) for row in found]


def test_a_question_that_is_trained_in_another_spelling_is_not_held_back():
    once = [(f"What is 2 + {number}?",) for number in range(8)]
    twice = [(text,) for number in range(36) for text in (f"What is 3 + {number}?", f"what is  3 + {number}? ")]
    assert sorted(held(*twice, *once)) == once


def test_the_same_last_turn_of_other_conversations_is_another_question():
    talks = [(f"Is {number} even?", "Are you sure?", "Yes") for number in range(80)]
    assert len(held(*talks)) == 8
