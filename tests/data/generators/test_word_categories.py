"""Exactly one option belongs to the category asked for, and the splits share no word."""

from __future__ import annotations

from collections import Counter

import pytest

from onpolicy_sdft.data.generators import generate_rows
from onpolicy_sdft.data.generators.common import SPLITS
from onpolicy_sdft.data.generators.word_categories import WORDS


@pytest.mark.parametrize("split", SPLITS)
def test_exactly_one_option_is_right(split):
    for row in generate_rows("word_categories", split=split):
        right = [word for word in row["choices"] if word in WORDS[row["category"]]]
        assert len(set(row["choices"])) == 4
        assert right == [row["choices"]["ABCD".index(row["answer"])]]
        assert row["response"] == f"{row['answer']}. {right[0]}"
        assert row["response"] in row["prompt"]


def test_no_word_is_in_two_categories_or_in_two_splits():
    every = [word for words in WORDS.values() for word in words]
    assert len(set(every)) == len(every)
    used = [{word for row in generate_rows("word_categories", split=s) for word in row["choices"]} for s in SPLITS]
    assert len(set.union(*used)) == sum(map(len, used))


@pytest.mark.parametrize("split", SPLITS)
def test_no_letter_is_right_much_more_often_than_another(split):
    rows = generate_rows("word_categories", split=split)
    counts = Counter(row["answer"] for row in rows)
    assert all(abs(counts[letter] / len(rows) - 0.25) < 0.07 for letter in "ABCD")
