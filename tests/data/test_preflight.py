from __future__ import annotations

from typing import Any

from onpolicy_sdft.data.preflight import describe_lengths
from onpolicy_sdft.data.prepare import Prepared
from onpolicy_sdft.types import Demonstration, PromptPair, Turn

#: Lengths are described without them.
NO_PROMPTS: Any = None


def make_pair(index: int, num_student: int, num_teacher: int, num_response: int) -> PromptPair:
    demonstration = Demonstration(f"id-{index}", (Turn("user", "q"),), "a")
    return PromptPair(demonstration, (1,) * num_student, (1,) * num_teacher, (1,) * num_response)


def test_lengths_of_both_prompts_and_of_the_demonstrations_are_summarised():
    prepared = Prepared(tuple(make_pair(i, i + 1, 2 * i + 10, 5) for i in range(101)), (), (), NO_PROMPTS)
    (student, teacher, response), warnings = describe_lengths(prepared, max_new_tokens=5)
    assert (student.smallest, student.median, student.p95, student.largest) == (1, 51, 96, 101)
    assert (teacher.smallest, teacher.largest) == (10, 210)
    assert (response.smallest, response.median, response.largest) == (5, 5, 5)
    assert warnings == []


def test_the_histogram_has_one_bar_a_bin_and_shows_rare_lengths():
    prepared = Prepared(tuple(make_pair(i, 1000 if i == 0 else 10, 20, 5) for i in range(500)), (), (), NO_PROMPTS)
    (student, _, _), _ = describe_lengths(prepared, max_new_tokens=5)
    assert len(student.histogram) == 16
    assert student.histogram[0] == "█"
    assert student.histogram[-1] == "▁"
    assert set(student.histogram[1:-1]) == {" "}


def test_what_was_cut_left_out_or_is_longer_than_a_rollout_is_said_with_ids():
    rows = tuple(make_pair(i, 5, 5, 9 if i < 7 else 3) for i in range(9))
    prepared = Prepared(rows, dropped_ids=("lost-1", "lost-2"), trimmed_ids=("id-3",), prompts=NO_PROMPTS)
    _, (trimmed, dropped, truncated) = describe_lengths(prepared, max_new_tokens=8)
    assert trimmed == "1 demonstrations are cut to fit context.max_teacher_tokens: id-3"
    assert dropped == "2 rows are left out, they do not fit: lost-1, lost-2"
    assert truncated.startswith("7 demonstrations are longer than rollout.max_new_tokens=8")
    assert truncated.endswith("id-4, ... (7 in all)")
