from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from onpolicy_sdft.errors import DataError, TaskError
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.types import Demonstration, Turn

TASK = load_task("function_call", {})
LEGACY = load_task("function_call", {"match": "legacy"})
REFERENCE = "maps.find(place=\"New York\", limit=3, tags=['a', 'b'], opts={'x': 1, 'y': None})"


def demonstration(response: str = REFERENCE, **fields: object) -> Demonstration:
    return Demonstration("row-1", (Turn("user", "Find it"),), response, fields)


@pytest.mark.parametrize(
    "completion",
    [
        REFERENCE,
        "maps.find(limit=3, opts={'y': None, 'x': 1}, tags=[\"a\",\"b\"], place='New York')",
        "maps.find(\n    place='New York',\n    limit=3.0,\n    tags=['a', 'b',],\n    opts={'x': 1, 'y': null},\n)",
        f"```python\n{REFERENCE}\n```",
        f"The call maps.find() is:\n```\n{REFERENCE}\n```\nIt finds (some) places.",
        f"Here is the call with its parameter(s): `{REFERENCE}`. Done.",
        f"result = {REFERENCE}",
        f"`{REFERENCE}`",
        f"print({REFERENCE})",
        f"{REFERENCE}\n{REFERENCE}",
        "maps.find (place='New' ' York', limit=3, tags=['a', 'b'], opts=dict) ".replace("dict", "{'x': 1, 'y': None}"),
    ],
)
def test_the_same_call_in_another_spelling_is_right(completion: str) -> None:
    assert TASK.check(completion, demonstration()).correct


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "no_call"),
        ("I do not know (really).", "no_call"),
        ("maps.find(place='New York', limit=3", "no_call"),
        ("maps.find(limit=3)", "wrong_arguments"),
        (REFERENCE.replace("3", "True"), "wrong_arguments"),
        (REFERENCE.replace("3", "'3'"), "wrong_arguments"),
        (REFERENCE.replace("['a', 'b']", "['b', 'a']"), "wrong_arguments"),
        (REFERENCE.replace("New York", "new york"), "wrong_arguments"),
        (REFERENCE.replace("limit=3", "limit=3, limit=3"), "no_call"),
        (REFERENCE.replace("maps.", ""), "wrong_function"),
        (f"{REFERENCE}\nmaps.find(limit=4)", "several_calls"),
        (f"a().{REFERENCE}", "wrong_function"),
        ("f(" * 400, "no_call"),
        ("f(" * 400 + ")" * 400, "no_call"),
    ],
)
def test_another_call_or_none_is_wrong_with_a_reason(completion: str, reason: str) -> None:
    result = TASK.check(completion, demonstration())
    assert (result.correct, result.reason) == (False, reason)


@pytest.mark.parametrize(
    ("reference", "completion", "correct"),
    [
        ("f(x=-1)", "f(x=- 1)", True),
        ("f(x=-1)", "f(x=1)", False),
        ("f(x=true)", "f(x=True)", True),
        ("f(x=true)", "f(x='true')", False),
        ("f(x=1)", "f(x=True)", False),
        ("f(x={1, 2})", "f(x={2, 1})", True),
        ("f(x=(1, 2))", "f(x=[1, 2])", False),
        ("f(x=g(b=2, a=1))", "f(x=g(a=1, b=2))", True),
        ("f(x=g(1))", "f(x=g(2))", False),
        ("f(1, 2)", "f(2, 1)", False),
        ("f(x=arr1)", "f(x='arr1')", False),
        ("f(x=1024 * 1024)", "f(x=1024*1024)", True),
        ("f(x=')(')", 'so: f(x=")(")', True),
        ("f(x='it\\'s')", 'f(x="it\'s")', True),
        (r"f(x='\d')", r"f(x='\d')", True),
        ("f(x={'a': [1, {'b': (2,)}]})", 'f(x={"a":[1,{"b":(2,)}]})', True),
        ("f(**kw, a=1)", "f(a=1, **kw)", True),
        ("f()", "call f() now", True),
        ("f()", "call f().g() now", False),
        ("f(a=1)('b')", "so: f(a=1)('b').", True),
        ("f(a=1)('b')", "so: f(a=1).", False),
        ("f(a=1)", "so: f(a=1)(if you like).", True),
        ("f(s)", "f(s)", True),
    ],
)
def test_literals_compare_by_value(reference: str, completion: str, correct: bool) -> None:
    assert TASK.check(completion, demonstration(reference)).correct is correct


def test_a_call_inside_prose_brackets_is_found() -> None:
    row = demonstration("f(x=1)")
    assert TASK.check("use a function(see f(x=1) or so!)", row).correct


@pytest.mark.parametrize(
    "reference", ["[f(x=1), g()]", '[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]']
)
def test_a_reference_that_is_a_list_asks_for_all_of_its_calls(reference: str) -> None:
    row = demonstration('Action: f\nAction Input: {"x": 1}\nAction: g\nAction Input: {}', answer=reference)
    TASK.check_demonstration(row)
    assert TASK.check(row.response, row).correct
    for completion in ("f(x=1)", "f(x=1)\ng(y=2)", "f(x=1)\ng()\nf(x=2)"):
        assert TASK.check(completion, row).reason == "wrong_calls"


@pytest.mark.parametrize("response", ["f(x=<value>)", "no call", "f(x=1); f(x=2)"])
def test_a_reference_that_is_not_one_call_is_refused_by_name(response: str) -> None:
    with pytest.raises(DataError, match=r"row-1.*match: legacy"):
        TASK.check_demonstration(demonstration(response))
    with pytest.raises(DataError, match="row-1"):
        TASK.check("f(x=1)", demonstration(response))


def test_a_field_may_hold_the_bare_call() -> None:
    row = demonstration("Sure, f(a=2) or f(a=1)!", answer="f(a=1)")
    TASK.check_demonstration(row)
    assert TASK.check(TASK.reference_answer(row), row).correct


@pytest.mark.parametrize("task", [TASK, LEGACY])
def test_the_reference_answer_passes(task: object) -> None:
    row = demonstration()
    TASK.check_demonstration(row)
    assert TASK.check(TASK.reference_answer(row), row).correct
    assert LEGACY.check(LEGACY.reference_answer(row), row).correct


def published_rule(completion: str, reference: str) -> bool:
    """The rule of the ACL-2024 code, step by step."""

    def standard(text: str) -> str:
        return ",".join('"'.join(" ".join(text.split()).split("'")).split(", "))

    name, _, rest = standard(reference).partition("(")
    parameters = rest[: rest.rindex(")")]
    return bool(re.search(r"\b" + re.escape(f"{name}({parameters})"), standard(completion)))


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        (REFERENCE, True),
        (REFERENCE.replace("'", '"').replace(", ", ","), True),
        (REFERENCE.replace(", ", ",\n   "), True),
        (f"I would call {REFERENCE} here", True),
        (f"{REFERENCE} and {REFERENCE.replace('3', '4')}", True),
        (f"my_{REFERENCE}", False),
        (f"my.{REFERENCE}", True),
        (REFERENCE.replace("limit=3", "limit = 3"), False),
        ("maps.find(limit=3, place='New York')", False),
        ("", False),
    ],
)
def test_legacy_follows_the_published_rule(completion: str, correct: bool) -> None:
    assert LEGACY.check(completion, demonstration()).correct is correct
    assert published_rule(completion, REFERENCE) is correct


def test_legacy_compares_references_that_are_not_python() -> None:
    row = demonstration("f(x=<value>)")
    LEGACY.check_demonstration(row)
    assert LEGACY.check("f(x=<value>)", row).correct
    with pytest.raises(DataError, match="row-1"):
        LEGACY.check_demonstration(demonstration("no call"))


def test_an_unknown_match_names_the_nearest() -> None:
    with pytest.raises(TaskError, match=r"'match' is 'legcy'.*nearest: legacy"):
        load_task("function_call", {"match": "legcy"})


#: What the answers of the table are answers to; a person read each of them.
WEATHER = Demonstration(
    "row-1",
    (Turn("user", "Functions: get_weather(city: str, days: int), get_time(city: str). Three days in Paris?"),),
    "get_weather(city='Paris', days=3)",
)


def answers() -> list[tuple[str, str, str]]:
    with (Path(__file__).with_name("answers") / "function_call.jsonl").open() as lines:
        rows = map(json.loads, lines)
        return [(row["text"], row["reason"], row.get("reference", WEATHER.response)) for row in rows]


@pytest.mark.parametrize(("text", "reason", "reference"), answers())
def test_answers_are_read_in_the_forms_in_which_models_write_calls(text: str, reason: str, reference: str) -> None:
    result = TASK.check(text, Demonstration("row-1", WEATHER.turns, reference))
    assert (result.correct, result.reason) == (not reason, reason)


def test_the_forms_that_are_accepted_can_be_chosen() -> None:
    only = load_task("function_call", {"forms": ["python"]})
    assert only.check("get_weather(city='Paris', days=3)", WEATHER).correct
    as_json = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
    assert only.check(as_json, WEATHER).reason == "no_call"
    assert load_task("function_call", {"forms": ["json"]}).check(as_json, WEATHER).correct


@pytest.mark.parametrize("forms", [["xml"], [], "python", [3]])
def test_unknown_forms_are_named(forms: object) -> None:
    with pytest.raises(TaskError, match="'forms' is .*python, json, tags"):
        load_task("function_call", {"forms": forms})


def test_letters_may_be_composed_in_either_way() -> None:
    row = demonstration("f(x='caf\u00e9')")
    assert TASK.check("f(x='cafe\u0301')", row).correct
    possible = demonstration("f(x='caf\u00e9')", possible_answers={"f": {"x": ["caf\u00e9"]}})
    assert TASK.check("f(x='cafe\u0301')", possible).correct


def test_a_tag_does_not_tell_numbers_from_text_so_the_reference_does() -> None:
    text = "<function=f><parameter=x>1</parameter></function>"
    assert TASK.check(text, demonstration("f(x=1)")).correct
    assert TASK.check(text, demonstration("f(x='1')")).correct
    assert TASK.check(text, demonstration("f(x='1')", possible_answers={"f": {"x": ["1"]}})).correct
