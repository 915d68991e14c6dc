"""Every worked solution ends in the answer and adds up, and no template is in two splits."""

from __future__ import annotations

import re

import pytest

from onpolicy_sdft.data.generators import generate_rows
from onpolicy_sdft.data.generators.common import SPLITS
from onpolicy_sdft.data.generators.math_word_problems import EXCLUDED, LONG, SHORT

# Whole expressions only, and neither a percentage nor a fraction as their result.
SUM = re.compile(
    r"(?<![-+*/.\d(x)÷] )(?<![-+*/.\d(])"
    r"(\d+(?:\.\d+)?(?: ?[-+*/x] ?\d+(?:\.\d+)?)+) ?= ?(\d+(?:\.\d+)?)(?![\d.]*[/%])"
)


@pytest.mark.parametrize("split", SPLITS)
def test_every_solution_ends_in_the_answer(split):
    for row in generate_rows("math_word_problems", split=split):
        assert re.fullmatch(r"-?\d+", row["answer"])
        *steps, last = row["response"].split("\n")
        assert last == f"The answer is {row['answer']}."
        assert steps
        assert "####" not in row["response"]
        assert "Do not include units" not in row["prompt"]


@pytest.mark.parametrize("split", SPLITS)
def test_the_sums_in_the_solutions_are_right(split):
    checked = 0
    for row in generate_rows("math_word_problems", split=split):
        plain = re.sub(r"[$£€]", "", row["response"]).replace(",", "")
        for left, right in SUM.findall(plain):
            value = eval(left.replace("x", "*"))
            assert value == pytest.approx(float(right), abs=1e-6), (row["id"], left, right)
            checked += 1
    assert checked > 300


def test_no_template_is_in_two_splits():
    numbers = [n for templates in (SHORT, LONG) for split in SPLITS for n in templates[split]]
    excluded = [n for group in EXCLUDED.values() for n in group]
    assert len(set(numbers + excluded)) == len(numbers + excluded) == 85
    for split in SPLITS:
        found = {row["template"] for row in generate_rows("math_word_problems", split=split)}
        assert found == set(SHORT[split] + LONG[split])


def test_short_templates_have_shorter_solutions():
    def mean_length(templates: str) -> float:
        rows = generate_rows("math_word_problems", split="train", options={"templates": templates})
        assert len(rows) >= 600
        return sum(len(row["response"]) for row in rows) / len(rows)

    assert mean_length("short") < 0.7 * mean_length("all")


def test_the_package_still_offers_the_templates_that_are_named_here():
    from reasoning_gym.arithmetic.gsm_symbolic import gsm_symbolic

    numbers = [n for templates in (SHORT, LONG) for split in SPLITS for n in templates[split]]
    assert set(numbers) <= set(gsm_symbolic.tasks_ok)
