"""Calls with several right spellings, by the rules of the Berkeley Function Calling Leaderboard."""

from __future__ import annotations

from typing import Any

import pytest

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.possible_answers import reference_call
from onpolicy_sdft.types import Demonstration, Turn

TASK = load_task("function_call", {})
ARGUMENTS: dict[str, list[Any]] = {
    "place": ["New York, NY", "NYC"],
    "days": [3],
    "rate": [0.5, ""],
    "size": [2.0, ""],
    "detailed": [True, ""],
    "tags": [["a", "b"], ["b", "a"], ""],
    "where": [{"age": [30, 31], "job": ["cook", ""]}, ""],
    "rows": [[{"name": ["Ann"]}, {"name": ["Bob", "Rob"]}], ""],
    "until": [None, ""],
}


def demonstration(arguments: dict[str, Any] | None = None, function: str = "maps.find") -> Demonstration:
    chosen = ARGUMENTS if arguments is None else arguments
    response = reference_call(function, chosen)
    return Demonstration("row-1", (Turn("user", "Find it"),), response, {"possible_answers": {function: chosen}})


@pytest.mark.parametrize(
    "arguments",
    [
        "place='New York, NY', days=3",
        "place='new york NY', days=3",
        'days=3, place="N.Y.C."',
        "place='NYC', days=3, rate=0.5",
        "place='NYC', days=3, size=2",
        "place='NYC', days=3, size=2.0, where={'age': 30.0}",
        "place='NYC', days=3, detailed=True, tags=['a', 'b']",
        "place='NYC', days=3, detailed=true, tags=['B', 'A']",
        "place='NYC', days=3, tags=('a', 'b'), until=null",
        "place='NYC', days=3, where={'age': 31}",
        "place='NYC', days=3, where={'job': 'Cook', 'age': 30}",
        "place='NYC', days=3, rows=[{'name': 'Ann'}, {'name': 'Rob'}]",
        "place=NYC, days=3",
    ],
)
def test_any_of_the_right_values_is_right_and_what_may_be_left_out_may_be(arguments):
    result = TASK.check(f"Here: `maps.find({arguments})`", demonstration())
    assert (result.correct, result.reason) == (True, "")


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("maps.find(place='NYC')", "wrong_arguments"),
        ("maps.find(days=3)", "wrong_arguments"),
        ("maps.find(place='Boston', days=3)", "wrong_arguments"),
        ("maps.find(place='NYC', days=4)", "wrong_arguments"),
        ("maps.find(place='NYC', days='3')", "wrong_arguments"),
        ("maps.find(place='NYC', days=3.0)", "wrong_arguments"),
        ("maps.find(place='NYC', days=True)", "wrong_arguments"),
        ("maps.find(place='NYC', days=3, detailed=1)", "wrong_arguments"),
        ("maps.find(place='NYC', days=3, detailed='True')", "wrong_arguments"),
        ("maps.find(place='NYC', days=3, more=1)", "wrong_arguments"),
        ("maps.find(place='NYC', days=3, tags=['a'])", "wrong_arguments"),
        ("maps.find(place='NYC', days=3, tags='a')", "wrong_arguments"),
        ("maps.find(place='NYC', days=3, where={'job': 'cook'})", "wrong_arguments"),
        ("maps.find(place='NYC', days=3, where={'age': 30, 'x': 1})", "wrong_arguments"),
        ("maps.find(place='NYC', days=3, rows=[{'name': 'Bob'}, {'name': 'Ann'}])", "wrong_arguments"),
        ("maps.find('NYC', 3)", "wrong_arguments"),
        ("maps.find(place='NYC', **more)", "wrong_arguments"),
        ("find(place='NYC', days=3)", "wrong_function"),
        ("maps.find(place='NYC', days=3)\nmaps.find(place='NYC', days=4)", "several_calls"),
        ("New York for three days", "no_call"),
    ],
)
def test_other_values_are_wrong_with_a_reason(completion, reason):
    result = TASK.check(completion, demonstration())
    assert (result.correct, result.reason) == (False, reason)


def test_the_reference_call_is_the_shortest_one_that_is_right():
    assert reference_call("maps.find", ARGUMENTS) == "maps.find(place='New York, NY', days=3)"
    row = demonstration({"where": ARGUMENTS["where"][:1], "rows": ARGUMENTS["rows"][:1]})
    assert row.response == "maps.find(where={'age': 30}, rows=[{'name': 'Ann'}, {'name': 'Bob'}])"
    TASK.check_demonstration(row)
    assert TASK.check(TASK.reference_answer(row), row).correct


def test_a_function_without_arguments_has_a_call_too():
    row = demonstration({}, "now")
    TASK.check_demonstration(row)
    assert TASK.check("now()", row).correct
    assert TASK.check("now(x=1)", row).reason == "wrong_arguments"


def test_a_dict_of_plain_values_is_compared_as_it_stands():
    row = demonstration({"where": [{"age": 30, "name": "Ann"}]})
    assert row.response == "maps.find(where={'age': 30, 'name': 'Ann'})"
    assert TASK.check("maps.find(where={'name': 'ann', 'age': 30})", row).correct
    assert not TASK.check("maps.find(where={'age': 30})", row).correct


@pytest.mark.parametrize("possible", ["f(x=1)", {}, {"f": ["x"]}, {"f": {"x": 1}}, {"f": {"x": []}}, {"f": {"x": "1"}}])
def test_possible_answers_of_another_form_are_refused_by_name(possible):
    row = Demonstration("row-1", (Turn("user", "q"),), "f(x=1)", {"possible_answers": possible})
    with pytest.raises(DataError, match="row-1.*'possible_answers'"):
        TASK.check_demonstration(row)


def test_a_row_that_leaves_the_column_blank_is_judged_by_its_reference():
    row = Demonstration("row-1", (Turn("user", "q"),), "f(x=1)", {"possible_answers": None})
    assert TASK.check("f(x=1)", row).correct
    assert not TASK.check("f(x=2)", row).correct
