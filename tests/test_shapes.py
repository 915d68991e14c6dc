from __future__ import annotations

import pytest
import torch

from onpolicy_sdft.shapes import pad_rows, round_rows, round_tokens


def test_token_counts_are_rounded_up_to_a_small_set_with_little_padding():
    assert round_tokens(0) == 0
    found = [round_tokens(count) for count in range(1, 1025)]
    assert sorted(set(found)) == [*range(32, 257, 32), 320, 384, 448, 512, 640, 768, 896, 1024]
    for count, rounded in enumerate(found, 1):
        assert rounded >= count
        assert round_tokens(rounded) == rounded, "what was rounded once stays"
        assert rounded - count < max(32, count / 4)


@pytest.mark.parametrize("an_octave", [1, 2, 4, 8])
def test_row_counts_are_rounded_up_to_a_small_set_with_little_padding(an_octave):
    found = [round_rows(count, an_octave) for count in range(1, 1025)]
    assert found == sorted(found)
    for count, rounded in enumerate(found, 1):
        assert rounded >= count
        assert round_rows(rounded, an_octave) == rounded
        assert count < 16 or rounded - count < count / an_octave
    assert set(found) <= {round_rows(count, 8) for count in range(1, 1025)}


def test_few_row_counts_are_those_that_graphs_are_captured_for():
    few = {round_rows(count, 2) for count in range(1, 1025)}
    assert few == {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024}


def test_a_bound_is_not_passed_but_by_what_is_above_it_already():
    assert round_tokens(990, 1000) == 1000
    assert round_tokens(600, 1000) == 640
    assert round_tokens(1300, 1000) == 1300


def test_rows_are_padded_with_zeros_behind_their_own_and_gradients_pass():
    x = torch.randn(5, 3, requires_grad=True)
    padded = pad_rows(x, 8)
    assert torch.equal(padded, torch.cat([x, torch.zeros(3, 3)]))
    padded.sum().backward()
    assert torch.equal(x.grad, torch.ones(5, 3))
    assert pad_rows(x).shape == (32, 3)
    whole = torch.randn(32, 3)
    assert pad_rows(whole) is whole
