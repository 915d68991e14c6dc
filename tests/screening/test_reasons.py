from __future__ import annotations

import pytest

from onpolicy_sdft.screening.reasons import is_looping, is_too_long, is_too_short


def test_a_text_loops_when_one_ngram_stands_more_often_than_allowed():
    phrase = [1, 2, 3, 4]
    assert not is_looping(phrase * 3, ngram=4, repeats=3)
    assert is_looping(phrase * 4, ngram=4, repeats=3)
    assert is_looping([7] * 7, ngram=4, repeats=3)
    assert not is_looping([7] * 6, ngram=4, repeats=3)


@pytest.mark.parametrize("ids", [[], [1], [1, 2, 3]])
def test_a_text_shorter_than_the_ngram_does_not_loop(ids):
    assert not is_looping(ids, ngram=4, repeats=1)


def test_a_text_may_repeat_itself_a_little_more_than_its_demonstration_does():
    row = [5, 6, 7, 8]
    assert is_looping(row * 12, ngram=4, repeats=3)
    assert not is_looping(row * 12, ngram=4, repeats=3, reference=row * 12)
    assert not is_looping(row * 13, ngram=4, repeats=3, reference=row * 12)
    assert is_looping([1, 2, 3, 4] * 40, ngram=4, repeats=3, reference=row * 12)


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
    assert (is_too_short(num_tokens, num_reference, 0.2) or is_too_long(num_tokens, num_reference, 5.0)) is off
