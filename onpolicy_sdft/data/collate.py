"""Micro-batches: rows sorted by length, packed to a budget of padded tokens.

Shape letters: B rows, T positions, N loss tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from onpolicy_sdft.types import MicroBatch, Row


def split_by_budget(rows: Sequence[Row], max_tokens: int) -> list[list[Row]]:
    """Group rows of similar length so that rows x longest stays within ``max_tokens``.

    A single row longer than the budget gets a micro-batch of its own.
    """
    groups: list[list[Row]] = []
    longest = 0
    for row in sorted(rows, key=lambda row: row.length, reverse=True):
        if groups and (len(groups[-1]) + 1) * longest <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
            longest = row.length
    return groups


def collate(
    rows: Sequence[Row],
    pad_token_id: int,
    device: torch.device | str = "cpu",
    position_weights: Sequence[float] = (),
) -> MicroBatch:
    """Right-pad rows and mark their loss tokens: every target token but skipped ones, and nothing else.

    Args:
        rows: Masks come from their lengths, never from token values, so a padding id that equals the terminator
            hides nothing.
        pad_token_id: Any valid id.
        device: Where the tensors go.
        position_weights: Weights of the first, second, ... token of a target that is not plain; tokens beyond them
            weigh as the last. None: all weigh 1.
    """
    num_positions = max(row.length for row in rows)
    input_ids_BT = torch.full((len(rows), num_positions), pad_token_id, dtype=torch.int64)
    attention_mask_BT = torch.zeros_like(input_ids_BT)
    loss_rows: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    plain: list[bool] = []
    for index, row in enumerate(rows):
        ids = [*row.prompt_ids, *row.target_ids]
        input_ids_BT[index, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        attention_mask_BT[index, : len(ids)] = 1
        learned = range(row.num_skipped, len(row.target_ids))
        loss_rows += [index] * len(learned)
        positions += [len(row.prompt_ids) + place - 1 for place in learned]  # the state before a token predicts it
        labels += row.target_ids[row.num_skipped :]
        weights += [row.weight * _at(() if row.plain else position_weights, place) for place in learned]
        plain += [row.plain] * len(learned)
    return MicroBatch(
        input_ids=input_ids_BT.to(device),
        attention_mask=attention_mask_BT.to(device),
        loss_rows=torch.tensor(loss_rows, dtype=torch.int64, device=device),
        loss_positions=torch.tensor(positions, dtype=torch.int64, device=device),
        labels=torch.tensor(labels, dtype=torch.int64, device=device),
        weights=torch.tensor(weights, dtype=torch.float32, device=device),
        plain=torch.tensor(plain, dtype=torch.bool, device=device),
        num_loss_tokens=len(labels),
        num_counted_tokens=sum(max(0, len(row.target_ids) - row.num_skipped) for row in rows if row.counted),
        rows=tuple(rows),
    )


def _at(weights: Sequence[float], place: int) -> float:
    return weights[min(place, len(weights) - 1)] if weights else 1.0
