"""Every demonstration is a call that the prompt describes, and what is held out stays held out."""

from __future__ import annotations

import ast
import string

import pytest

from onpolicy_sdft.data.generators import generate_rows
from onpolicy_sdft.data.generators.common import SPLITS
from onpolicy_sdft.data.generators.function_calls_catalogue import (
    HELD_OUT_TEST,
    HELD_OUT_VALIDATION,
    SEEN,
)

APIS = {api.name: api for api in (*SEEN, *HELD_OUT_TEST, *HELD_OUT_VALIDATION)}
TYPES = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
}


def parse(response: str) -> tuple[str, dict]:
    call = ast.parse(response, mode="eval").body
    assert isinstance(call, ast.Call)
    assert not call.args
    return ast.unparse(call.func), {k.arg: ast.literal_eval(k.value) for k in call.keywords}


@pytest.mark.parametrize("split", SPLITS)
def test_every_demonstration_is_one_call_with_the_described_arguments(split):
    for row in generate_rows("function_calls", split=split):
        name, arguments = parse(row["response"])
        assert name == row["function"]
        parameters = APIS[name].parameters
        assert {k for k, p in parameters.items() if p.required} <= set(arguments)
        for key, value in arguments.items():
            allowed = TYPES[parameters[key].type]
            assert isinstance(value, allowed), (name, key, value)
            assert isinstance(value, bool) == (parameters[key].type == "boolean")


@pytest.mark.parametrize("split", SPLITS)
def test_string_and_number_arguments_can_be_read_off_the_question(split):
    fixed = {(a.name, k) for a in APIS.values() for q in a.questions for k in q.fixed}
    for row in generate_rows("function_calls", split=split):
        name, arguments = parse(row["response"])
        question = row["prompt"].split("Question: ")[1].split("\n")[0]
        for key, value in arguments.items():
            words = [v[0] for v in APIS[name].parameters[key].values if isinstance(v, tuple)]
            known = [str(value), *words]
            assert any(word in question for word in known) or (name, key) in fixed


@pytest.mark.parametrize("split", SPLITS)
def test_the_prompt_describes_the_function_and_its_parameters(split):
    for row in generate_rows("function_calls", split=split):
        api = APIS[row["function"]]
        assert row["prompt"].count("Parameters:\n") == row["num_functions"]
        assert f": {api.name}\nDescription: {api.description}\n" in row["prompt"]
        for key, parameter in api.parameters.items():
            assert f". {key} ({parameter.type}) - {parameter.description}" in row["prompt"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_number_of_functions_to_choose_from_can_be_set(number):
    rows = generate_rows("function_calls", split="test", limit=60, options={"num_functions": number})
    assert {row["num_functions"] for row in rows} == {number}
    assert all(row["prompt"].count("Description: ") == number for row in rows)


def test_the_number_of_functions_is_mixed_by_default_and_their_order_too():
    rows = generate_rows("function_calls", split="train")
    assert {row["num_functions"] for row in rows} == {1, 2, 3}
    several = [row for row in rows if row["num_functions"] == 3]
    places = [
        [line[10:] for line in row["prompt"].split("\n") if line.startswith("Function: ")].index(row["function"])
        for row in several
    ]
    assert set(places) == {0, 1, 2}


def test_the_catalogue_is_large_and_its_questions_fit_the_parameters():
    assert len(APIS) == len(SEEN) + len(HELD_OUT_TEST) + len(HELD_OUT_VALIDATION) >= 40
    for api in APIS.values():
        assert 2 <= len(api.parameters) <= 5
        assert len({q.text for q in api.questions}) == 8
        required = {key for key, p in api.parameters.items() if p.required}
        for question in api.questions:
            slots = {name for _, name, _, _ in string.Formatter().parse(question.text) if name}
            assert slots | set(question.fixed) <= set(api.parameters)
            assert not slots & set(question.fixed)
            assert required <= slots | set(question.fixed)


def test_held_out_apis_never_occur_in_the_training_prompts():
    train = "\n".join(row["prompt"] for row in generate_rows("function_calls", split="train"))
    for api in (*HELD_OUT_TEST, *HELD_OUT_VALIDATION):
        assert f": {api.name}\n" not in train
    for split, held_out in (("test", HELD_OUT_TEST), ("validation", HELD_OUT_VALIDATION)):
        names = {api.name for api in held_out}
        rows = generate_rows("function_calls", split=split)
        assert {row["function"] for row in rows if row["novel"]} == names
        assert not names & {row["function"] for row in rows if not row["novel"]}


def test_the_splits_share_no_question():
    questions = [
        {row["prompt"].split("Question: ")[1].split("\n")[0] for row in generate_rows("function_calls", split=split)}
        for split in SPLITS
    ]
    assert len(set.union(*questions)) == sum(map(len, questions))
