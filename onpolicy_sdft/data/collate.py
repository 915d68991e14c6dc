"""Micro-batches: texts side by side, padded to one length, or packed one behind the other.

The numbers of rows and tokens are rounded up to a few (see ``shapes.py``).

Shape letters: B rows, T positions, N loss tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch

from onpolicy_sdft.shapes import pieces, round_rows, round_tokens
from onpolicy_sdft.types import MicroBatch, TrainingRow


def split_by_budget(rows: Sequence[TrainingRow], max_tokens: int) -> list[list[TrainingRow]]:
    """Group rows of similar length so that rows x their padded length stays within ``max_tokens``.

    A single row longer than the budget gets a micro-batch of its own.
    """
    groups: list[list[TrainingRow]] = []
    longest = 0
    for row in sorted(rows, key=lambda row: row.length, reverse=True):
        if groups and (len(groups[-1]) + 1) * longest <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
            longest = round_tokens(row.length, max_tokens)
    return groups


def split_to_fill(rows: Sequence[TrainingRow], max_tokens: int) -> list[list[TrainingRow]]:
    """Group rows so that their tokens together stay within ``max_tokens``: the longest first, each where it fits.

    A single row longer than the budget gets a micro-batch of its own.
    """
    groups: list[list[TrainingRow]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: row.length, reverse=True):
        index = next((index for index, left in enumerate(room) if row.length <= left), len(groups))
        if index == len(groups):
            groups.append([])
            room.append(max_tokens)
        groups[index].append(row)
        room[index] -= row.length
    return groups


def collate(
    rows: Sequence[TrainingRow],
    pad_token_id: int,
    device: torch.device | str = "cpu",
    position_weights: Sequence[float] = (),
    *,
    packed: bool = False,
    max_tokens: int | None = None,
) -> MicroBatch:
    """Lay rows out and mark their loss tokens: every target token but skipped ones, and nothing else.

    Args:
        rows: Masks come from their lengths, never from token values, so a padding id that equals the terminator
            hides nothing.
        pad_token_id: Any valid id.
        device: Where the tensors go.
        position_weights: Weights of the first, second, ... token of a target that is not plain; tokens beyond them
            weigh as the last. None: all weigh 1.
        packed: One behind the other in one row, rather than right-padded in a row each.
        max_tokens: What padding for the sake of few shapes must not go beyond.
    """
    places = _packed_places(rows) if packed else [(index, 0) for index in range(len(rows))]
    shape = _shape([row.length for row in rows], packed, max_tokens)
    input_ids_BT = torch.full(shape, pad_token_id, dtype=torch.int64)
    attention_mask_BT = torch.zeros_like(input_ids_BT)
    attention_mask_BT[len(rows) :] = 1  # a row that attends nothing may be nan: padding rows attend themselves
    loss_rows: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    plain: list[bool] = []
    clips: list[float] = []
    for row, (index, first) in zip(rows, places, strict=True):
        ids = [*row.prompt_ids, *row.target_ids]
        input_ids_BT[index, first : first + len(ids)] = torch.tensor(ids, dtype=torch.int64)
        attention_mask_BT[index, first : first + len(ids)] = 1
        learned = range(row.num_skipped, len(row.target_ids))
        loss_rows += [index] * len(learned)
        start = first + len(row.prompt_ids) - 1  # the state before a token predicts it
        positions += [start + place for place in learned]
        labels += row.target_ids[row.num_skipped :]
        weights += [row.weight * _at(() if row.plain else position_weights, place) for place in learned]
        plain += [row.plain] * len(learned)
        clips += [math.inf if row.clip is None else row.clip] * len(learned)
    return MicroBatch(
        input_ids=input_ids_BT.to(device),
        attention_mask=None if packed else attention_mask_BT.to(device),
        packed_lengths=_packed_lengths(rows, shape[1]) if packed else (),
        loss_rows=torch.tensor(loss_rows, dtype=torch.int64, device=device),
        loss_positions=torch.tensor(positions, dtype=torch.int64, device=device),
        labels=torch.tensor(labels, dtype=torch.int64, device=device),
        weights=torch.tensor(weights, dtype=torch.float32, device=device),
        plain=torch.tensor(plain, dtype=torch.bool, device=device),
        clips=torch.tensor(clips, dtype=torch.float32, device=device),
        num_loss_tokens=len(labels),
        num_counted_tokens=sum(max(0, len(row.target_ids) - row.num_skipped) for row in rows if row.counted),
        rows=tuple(rows),
    )


def _packed_places(rows: Sequence[TrainingRow]) -> list[tuple[int, int]]:
    """Return the row and the position that each text begins at."""
    ends = accumulate(row.length for row in rows)
    return [(0, end - row.length) for row, end in zip(rows, ends, strict=True)]


def _shape(lengths: Sequence[int], packed: bool, max_tokens: int | None) -> tuple[int, int]:
    """Return rows and positions of a micro-batch, rounded up."""
    if packed:
        return 1, round_tokens(sum(lengths), max_tokens)
    length, num_rows = round_tokens(max(lengths), max_tokens), round_rows(len(lengths))
    return num_rows if max_tokens is None else max(len(lengths), min(num_rows, max_tokens // length)), length


def _packed_lengths(rows: Sequence[TrainingRow], total: int) -> tuple[int, ...]:
    """Return the lengths of packed texts; padding is one more, or several where it is longer than all of them."""
    lengths = [row.length for row in rows]
    return (*lengths, *pieces(total - sum(lengths), max(lengths)))


def _at(weights: Sequence[float], place: int) -> float:
    return weights[min(place, len(weights) - 1)] if weights else 1.0
