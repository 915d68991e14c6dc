from __future__ import annotations

import random

import pytest
import torch

from onpolicy_sdft.data.collate import collate, split_by_budget, split_to_fill
from onpolicy_sdft.shapes import round_rows, round_tokens
from onpolicy_sdft.types import TrainingRow

PAD = 257


def rows(*pairs, **options):
    """Rows of prompt and target ids."""
    return [TrainingRow(prompt, target, **options) for prompt, target in pairs]


def as_pairs(group):
    return [(row.prompt_ids, row.target_ids) for row in group]


def test_loss_tokens_are_exactly_the_target_and_are_predicted_from_the_state_before():
    batch = collate(rows(((1, 2, 3), (4, PAD)), ((5,), (6, 7, 8))), PAD)
    assert batch.num_loss_tokens == 5
    assert batch.labels.tolist() == [4, PAD, 6, 7, 8]
    assert batch.loss_rows.tolist() == [0, 0, 1, 1, 1]
    assert batch.loss_positions.tolist() == [2, 3, 0, 1, 2]
    assert torch.equal(batch.input_ids[batch.loss_rows, batch.loss_positions + 1], batch.labels)


def test_padding_that_equals_the_terminator_hides_nothing():
    batch = collate(rows(((1, PAD), (2, PAD)), ((3,), (PAD,))), PAD)
    assert batch.attention_mask.tolist() == [[1] * 4 + [0] * 28, [1] * 2 + [0] * 30]
    assert batch.labels.tolist() == [2, PAD, PAD]


def test_rows_are_padded_on_the_right():
    batch = collate(rows(((1, 2, 3), (4,)), ((5,), (6,))), PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4] + [PAD] * 28, [5, 6] + [PAD] * 30]


def test_a_row_without_a_target_has_no_loss_tokens():
    batch = collate(rows(((PAD,), ())), PAD)
    assert batch.num_loss_tokens == 0
    assert batch.labels.shape == (0,)


@pytest.mark.parametrize("budget", [40, 100, 1000])
def test_padded_tokens_stay_within_the_budget_and_no_row_is_lost(budget):
    generator = random.Random(0)
    pairs = [(tuple([i] * generator.randint(1, 25)), tuple([i] * generator.randint(1, 15))) for i in range(60)]
    groups = [as_pairs(group) for group in split_by_budget(rows(*pairs), budget)]
    assert sorted(pair for group in groups for pair in group) == sorted(pairs)
    for group in groups:
        made = collate(rows(*group), PAD, max_tokens=budget)
        assert made.input_ids.numel() <= max(budget, 40)
        assert len(made.input_ids) == 1 or made.input_ids.numel() <= budget


def test_a_row_longer_than_the_budget_stands_alone():
    long, short, shorter = ((0,) * 70, (1,)), ((0,) * 4, (1,)), ((0,) * 3, (1,))
    groups = split_by_budget(rows(short, long, shorter), 64)
    assert [as_pairs(group) for group in groups] == [[long], [short, shorter]]


def test_rows_of_similar_length_share_a_micro_batch():
    pairs = [((0,) * n, (1,)) for n in (1, 40, 1, 40, 1, 40)]
    groups = split_by_budget(rows(*pairs), 192)
    assert [[len(row.prompt_ids) for row in group] for group in groups] == [[40, 40, 40], [1, 1, 1]]


def test_nothing_to_learn_makes_no_micro_batch():
    assert split_by_budget([], 100) == []


def test_skipped_tokens_are_read_but_not_learned_and_not_counted():
    batch = collate(rows(((1, 2), (3, 4, 5)), ((6,), (7,)), num_skipped=2), PAD)
    assert batch.labels.tolist() == [5]
    assert batch.input_ids[0].tolist() == [1, 2, 3, 4, 5] + [PAD] * 27
    assert batch.input_ids[batch.loss_rows, batch.loss_positions + 1].tolist() == [5]
    assert batch.num_loss_tokens == batch.num_counted_tokens == 1


def test_position_weights_reach_each_target_from_its_start_and_the_last_goes_on():
    made = [*rows(((1,), (2, 3, 4)), num_skipped=1), *rows(((1,), (5, 6)), plain=True, counted=False, weight=0.5)]
    batch = collate(made, PAD, position_weights=[0.0, 2.0, 3.0])
    assert batch.weights.tolist() == [2.0, 3.0, 0.5, 0.5], "a plain row has its own weight only"
    assert batch.plain.tolist() == [False, False, True, True]
    assert (batch.num_loss_tokens, batch.num_counted_tokens) == (4, 2)


def test_packed_rows_lie_one_behind_the_other_and_their_loss_tokens_are_the_same():
    made = rows(((1, 2, 3), (4, PAD)), ((5,), (6, 7, 8)), ((9, 9), ()))
    batch = collate(made, PAD, packed=True)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, PAD, 5, 6, 7, 8, 9, 9] + [PAD] * 21]
    assert batch.attention_mask is None
    assert batch.packed_lengths == (5, 4, 2, 5, 5, 5, 5, 1), "padding is texts of its own, no longer than the others"
    assert batch.loss_positions.tolist() == [2, 3, 5, 6, 7]
    padded = collate(made, PAD)
    assert padded.packed_lengths == ()
    for name in ("labels", "weights", "plain"):
        assert torch.equal(getattr(batch, name), getattr(padded, name))
    assert torch.equal(batch.input_ids[batch.loss_rows, batch.loss_positions + 1], batch.labels)


@pytest.mark.parametrize("budget", [1, 10, 37, 1000])
def test_packed_groups_hold_every_row_once_and_only_a_row_alone_is_above_the_budget(budget):
    numbers = random.Random(0)
    made = rows(*[((index,) * numbers.randint(1, 20), (0,) * numbers.randint(0, 9)) for index in range(40)])
    groups = split_to_fill(made, budget)
    assert sorted(id(row) for group in groups for row in group) == sorted(map(id, made))
    assert all(sum(row.length for row in group) <= budget or len(group) == 1 for group in groups)
    assert len(groups) <= len(split_by_budget(made, budget))
    assert split_to_fill([], budget) == []


@pytest.mark.parametrize("packed", [False, True])
def test_micro_batches_of_any_texts_have_few_shapes_and_padding_counts_for_nothing(packed):
    numbers = random.Random(0)
    shapes = set()
    for _ in range(300):
        texts = [((1,) * numbers.randint(1, 60), (2,) * numbers.randint(1, 60)) for _ in range(numbers.randint(1, 9))]
        made = rows(*texts)
        batch = collate(made, PAD, packed=packed)
        shapes.add(batch.input_ids.shape)
        num_tokens, num_targets = (
            sum(count) for count in zip(*((r.length, len(r.target_ids)) for r in made), strict=True)
        )
        assert batch.num_padding_tokens == batch.input_ids.numel() - num_tokens
        assert batch.num_loss_tokens == batch.num_counted_tokens == len(batch.labels) == num_targets
        assert set(batch.labels.tolist()) == {2}
        assert sum(batch.packed_lengths) == (batch.input_ids.numel() if packed else 0)
    assert all((num_rows, length) == (round_rows(num_rows), round_tokens(length)) for num_rows, length in shapes)
    assert len(shapes) <= 20


def test_padding_does_not_go_beyond_the_budget_of_a_forward():
    text = ((1,) * 90, (2,) * 10)
    assert collate(rows(*[text] * 9), PAD, packed=True, max_tokens=1000).input_ids.shape == (1, 1000)
    assert collate(rows(*[text] * 9), PAD, packed=True, max_tokens=700).input_ids.shape == (1, 900)
    assert collate(rows(*[text] * 9), PAD, max_tokens=1290).input_ids.shape == (10, 128)
