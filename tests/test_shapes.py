from __future__ import annotations

import torch

from onpolicy_sdft.shapes import pad_rows, round_up


def test_counts_are_rounded_up_to_a_small_set_with_little_padding():
    assert round_up(0) == 0
    found = [round_up(count) for count in range(1, 1025)]
    assert sorted(set(found))[:14] == [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64]
    assert len(set(found)) == 30
    assert found == sorted(found)
    for count, rounded in enumerate(found, 1):
        assert rounded >= count
        assert round_up(rounded) == rounded, "what was rounded once stays"
        assert count < 16 or rounded <= 1.25 * count


def test_fewer_counts_an_octave_are_a_part_of_the_set():
    few = {round_up(count, an_octave=2) for count in range(1, 1025)}
    assert few == {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024}
    assert few < {round_up(count) for count in range(1, 1025)}


def test_a_bound_is_not_passed_but_by_what_is_above_it_already():
    assert round_up(990, 1000) == 1000
    assert round_up(600, 1000) == 640
    assert round_up(1300, 1000) == 1300


def test_rows_are_padded_with_zeros_behind_their_own_and_gradients_pass():
    x = torch.randn(5, 3, requires_grad=True)
    padded = pad_rows(x)
    assert torch.equal(padded, torch.cat([x, torch.zeros(3, 3)]))
    padded.sum().backward()
    assert torch.equal(x.grad, torch.ones(5, 3))
    whole = torch.randn(8, 3)
    assert pad_rows(whole) is whole
