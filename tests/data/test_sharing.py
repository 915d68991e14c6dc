from __future__ import annotations

import random

import pytest

from onpolicy_sdft.data.sharing import shard_by_length, shard_groups, unshard


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_every_item_goes_to_one_rank_and_comes_back_in_its_place(num_ranks):
    sizes = [random.Random(index).randint(1, 90) for index in range(25)]
    shares = shard_by_length(sizes, num_ranks)
    assert sorted(index for share in shares for index in share) == list(range(25))
    parts = [[f"item {index}" for index in share] for share in shares]
    assert unshard(shares, parts) == [f"item {index}" for index in range(25)]


def test_ranks_get_about_the_same():
    sizes = [random.Random(index).randint(1, 90) for index in range(64)]
    sums = [sum(sizes[index] for index in share) for share in shard_by_length(sizes, 4)]
    assert max(sums) - min(sums) < 10


def test_one_rank_keeps_the_order():
    assert shard_by_length([3, 9, 1], 1) == [[0, 1, 2]]


def test_a_rank_may_have_nothing_to_do():
    assert shard_by_length([5], 2) == [[0], []]
    assert unshard(shard_by_length([5], 2), [["a"], []]) == ["a"]


def test_samples_of_one_demonstration_go_to_one_rank():
    sizes = [5, 5, 9, 9, 1, 1, 4, 4]
    shares = shard_groups(sizes, 2, 3)
    assert sorted(index for share in shares for index in share) == list(range(8))
    assert all(share[i] + 1 == share[i + 1] and share[i] % 2 == 0 for share in shares for i in range(0, len(share), 2))
    assert shard_groups(sizes, 1, 3) == shard_by_length(sizes, 3)
