from __future__ import annotations

import pytest

from onpolicy_sdft.screening.reasons import banned_phrase, is_length_off, is_looping


def test_a_text_loops_when_one_ngram_stands_more_often_than_allowed():
    phrase = [1, 2, 3, 4]
    assert not is_looping(phrase * 3, ngram=4, repeats=3)
    assert is_looping(phrase * 4, ngram=4, repeats=3)
    assert is_looping([7] * 7, ngram=4, repeats=3)
    assert not is_looping([7] * 6, ngram=4, repeats=3)


@pytest.mark.parametrize("ids", [[], [1], [1, 2, 3]])
def test_a_text_shorter_than_the_ngram_does_not_loop(ids):
    assert not is_looping(ids, ngram=4, repeats=1)


def test_a_banned_phrase_is_found_in_any_case():
    assert banned_phrase("As the Reference ANSWER says", ["my response", "reference answer"]) == "reference answer"
    assert banned_phrase("as the answer says", ["my response", "Reference Answer"]) is None


@pytest.mark.parametrize(
    ("num_tokens", "num_reference", "off"),
    [
        (20, 100, False),
        (19, 100, True),
        (500, 100, False),
        (501, 100, True),
        (33, 1, False),  # 32 tokens more are fine whatever the ratio
        (34, 1, True),
        (1, 5, False),
        (1, 6, True),
    ],
)
def test_lengths_out_of_proportion_are_off(num_tokens, num_reference, off):
    assert is_length_off(num_tokens, num_reference, shortest=0.2, longest=5.0) is off
