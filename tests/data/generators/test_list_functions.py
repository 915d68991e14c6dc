"""Every demonstration passes its tests, and what is held out stays held out."""

from __future__ import annotations

import ast
import re

import pytest

from onpolicy_sdft.data.generators import generate_rows
from onpolicy_sdft.data.generators.common import SPLITS
from onpolicy_sdft.data.generators.list_functions import EXAMPLES, NOUN_FRAMES, VERB_FRAMES
from onpolicy_sdft.data.generators.list_functions_catalogue import (
    HELD_OUT_TEST,
    HELD_OUT_VALIDATION,
    SEEN,
)

EVERY = (*SEEN, *HELD_OUT_TEST, *HELD_OUT_VALIDATION)


def code_of(response: str) -> str:
    fenced = re.search(r"```python\n(.*)\n```", response, re.DOTALL)
    return fenced[1] if fenced else response


@pytest.mark.parametrize("style", ["plain", "terse"])
@pytest.mark.parametrize("split", SPLITS)
def test_every_demonstration_passes_its_tests(split, style):
    for row in generate_rows("list_functions", split=split, options={"style": style}):
        namespace: dict = {}
        exec(code_of(row["response"]), namespace)
        for test in row["tests"]:
            exec(test, namespace)


@pytest.mark.parametrize("split", SPLITS)
def test_both_styles_ask_the_same_and_answer_differently(split):
    plain = generate_rows("list_functions", split=split, options={"style": "plain"})
    terse = generate_rows("list_functions", split=split, options={"style": "terse"})
    for a, b in zip(plain, terse, strict=True):
        assert (a["id"], a["prompt"], a["tests"]) == (b["id"], b["prompt"], b["tests"])
        assert re.fullmatch(r"[^\n]+\n\n```python\ndef .*\n```", a["response"], re.DOTALL)
        assert b["response"].startswith(f"{b['function']} = lambda ")
        assert "\n" not in b["response"]
        assert "`" not in b["response"]


@pytest.mark.parametrize("split", SPLITS)
def test_the_prompt_names_the_function_and_its_arguments(split):
    for row in generate_rows("list_functions", split=split, limit=200):
        assert row["function"] in row["prompt"]
        definition = ast.parse(code_of(row["response"])).body[0]
        assert isinstance(definition, ast.FunctionDef)
        for argument in definition.args.args:
            assert argument.arg in row["prompt"]


@pytest.mark.parametrize("split", SPLITS)
def test_the_tests_are_few_and_cannot_be_passed_by_a_constant(split):
    for row in generate_rows("list_functions", split=split):
        assert 4 <= len(row["tests"]) <= 6
        assert len({test.split(" == ")[1] for test in row["tests"]}) > 1, row["behaviour"]


def test_the_example_in_a_prompt_is_not_one_of_the_tests():
    for row in generate_rows("list_functions", split="train"):
        for test in row["tests"]:
            call = test.removeprefix("assert ").split(" == ")[0]
            assert f"`{call}`" not in row["prompt"]


def test_an_empty_list_is_tested_where_it_has_an_answer():
    empty = {b.key for b in EVERY if b.empty}
    for row in generate_rows("list_functions", split="test"):
        has_empty = any("([])" in test or "([], [])" in test for test in row["tests"])
        assert has_empty == (row["behaviour"] in empty)


def test_there_are_many_behaviours_with_names_of_their_own():
    assert len({b.key for b in EVERY}) == len(EVERY) >= 60
    for behaviour in EVERY:
        assert len(set(behaviour.names.split())) >= 3
        assert len({*behaviour.nouns, *behaviour.verbs}) == 4


def test_some_behaviours_never_occur_in_training():
    used = {s: generate_rows("list_functions", split=s) for s in SPLITS}
    keys = {s: {row["behaviour"] for row in rows} for s, rows in used.items()}
    assert {b.key for b in HELD_OUT_TEST} == keys["test"] - keys["train"]
    assert {b.key for b in HELD_OUT_VALIDATION} == keys["validation"] - keys["train"]
    for rows in used.values():
        assert all(row["novel"] == (row["behaviour"] not in keys["train"]) for row in rows)
    assert 0.2 < sum(row["novel"] for row in used["test"]) / len(used["test"]) < 0.5


def test_the_splits_share_no_wording():
    for templates in (NOUN_FRAMES, VERB_FRAMES, EXAMPLES):
        flat = [template for split in SPLITS for template in templates[split]]
        assert len(set(flat)) == len(flat)
