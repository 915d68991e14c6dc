from __future__ import annotations

import dataclasses

import pytest

from onpolicy_sdft.data.mixing import mix
from onpolicy_sdft.data.sources import DemonstrationSet, fingerprint
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tasks.exact import Exact
from onpolicy_sdft.tasks.mixed import MixedTask
from onpolicy_sdft.tasks.multiple_choice import MultipleChoice
from onpolicy_sdft.types import Demonstration, Turn


def rows(name: str, number: int) -> DemonstrationSet:
    found = [Demonstration(f"{index}", (Turn("user", f"{name} {index}?"),), f"{index}") for index in range(number)]
    return DemonstrationSet(tuple(found), name, (), fingerprint(found))


def test_nothing_to_mix_is_the_set_itself():
    own = rows("own", 3)
    assert mix(own, {}, 0.5, 0) is own


def test_the_rate_is_the_share_of_the_others_and_equal_between_them():
    mixed = mix(rows("own", 60), {"a": rows("a", 100), "b": rows("b", 100)}, 0.25, 0)
    ids = [row.example_id for row in mixed.demonstrations]
    assert len(ids) == len(set(ids)) == 80
    assert [sum(i.startswith(p) for i in ids) for p in ("a/", "b/")] == [10, 10]
    assert mixed.where == "own with 10 of a with 10 of b"


def test_without_a_rate_every_row_is_there_once():
    mixed = mix(rows("own", 5), {"a": rows("a", 7), "b": rows("b", 2)}, None, 0)
    assert len({row.example_id for row in mixed.demonstrations}) == 14


def test_the_choice_follows_the_seed_and_so_does_the_fingerprint():
    first, again, other = (mix(rows("own", 10), {"a": rows("a", 50)}, 0.5, seed) for seed in (0, 0, 1))
    assert first == again
    assert first.fingerprint != other.fingerprint


def test_a_source_with_too_few_rows_is_refused_with_the_way_out():
    with pytest.raises(DataError, match=r"asks for 90 demonstrations of 'a', a has 5.*lower rate"):
        mix(rows("own", 10), {"a": rows("a", 5)}, 0.9, 0)


def test_each_demonstration_is_checked_by_its_own_task():
    own = Demonstration("1", (Turn("user", "?"),), "yes")
    other = Demonstration("letters/1", (Turn("user", "?"),), "B", {"choices": ["x", "y"]})
    letters = MultipleChoice()
    task = MixedTask(Exact(), {"letters/1": letters})
    assert task.check("yes", own).correct
    assert task.check("B", other) == letters.check("B", other)
    assert task.reference_answer(other) == letters.reference_answer(other)


def test_an_id_of_its_own_that_a_replayed_row_would_have_is_refused():
    taken = dataclasses.replace(
        rows("own", 1).demonstrations[0], example_id=f"a/{rows('a', 9).demonstrations[-1].example_id}"
    )
    own = dataclasses.replace(rows("own", 1), demonstrations=(taken,))
    with pytest.raises(DataError, match="ids must be unique"):  # also where that row is not among those drawn
        mix(own, {"a": rows("a", 9)}, 0.5, 0)
