from __future__ import annotations

import random

import pytest
import torch

from onpolicy_sdft.data.collate import collate, split_by_budget

PAD = 257


def test_loss_tokens_are_exactly_the_target_and_are_predicted_from_the_state_before():
    batch = collate([((1, 2, 3), (4, PAD)), ((5,), (6, 7, 8))], PAD)
    assert batch.num_loss_tokens == 5
    assert batch.labels.tolist() == [4, PAD, 6, 7, 8]
    assert batch.loss_rows.tolist() == [0, 0, 1, 1, 1]
    assert batch.loss_positions.tolist() == [2, 3, 0, 1, 2]
    assert torch.equal(batch.input_ids[batch.loss_rows, batch.loss_positions + 1], batch.labels)


def test_padding_that_equals_the_terminator_hides_nothing():
    batch = collate([((1, PAD), (2, PAD)), ((3,), (PAD,))], PAD)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.labels.tolist() == [2, PAD, PAD]


def test_rows_are_padded_on_the_right():
    batch = collate([((1, 2, 3), (4,)), ((5,), (6,))], PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, PAD, PAD]]


def test_a_row_without_a_target_has_no_loss_tokens():
    batch = collate([((PAD,), ())], PAD)
    assert batch.num_loss_tokens == 0
    assert batch.labels.shape == (0,)


@pytest.mark.parametrize("budget", [40, 100, 1000])
def test_padded_tokens_stay_within_the_budget_and_no_row_is_lost(budget):
    generator = random.Random(0)
    pairs = [(tuple([i] * generator.randint(1, 25)), tuple([i] * generator.randint(1, 15))) for i in range(60)]
    groups = split_by_budget(pairs, budget)
    assert sorted(pair for group in groups for pair in group) == sorted(pairs)
    for group in groups:
        assert len(group) * max(len(prompt) + len(target) for prompt, target in group) <= budget


def test_a_row_longer_than_the_budget_stands_alone():
    long, short, shorter = ((0,) * 30, (1,)), ((0,) * 4, (1,)), ((0,) * 3, (1,))
    assert split_by_budget([short, long, shorter], 12) == [[long], [short, shorter]]


def test_rows_of_similar_length_share_a_micro_batch():
    pairs = [((0,) * n, (1,)) for n in (1, 9, 1, 9, 1, 9)]
    assert [[len(prompt) for prompt, _ in group] for group in split_by_budget(pairs, 30)] == [[9, 9, 9], [1, 1, 1]]


def test_nothing_to_learn_makes_no_micro_batch():
    assert split_by_budget([], 100) == []
