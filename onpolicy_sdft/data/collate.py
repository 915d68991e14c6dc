"""Micro-batches: rows sorted by length, packed to a budget of padded tokens.

Shape letters: B rows, T positions, N loss tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from onpolicy_sdft.types import MicroBatch

#: A prompt and the target that follows it, as token ids.
Pair = tuple[Sequence[int], Sequence[int]]


def split_by_budget(pairs: Sequence[Pair], max_tokens: int) -> list[list[Pair]]:
    """Group rows of similar length so that rows x longest stays within ``max_tokens``.

    A single row longer than the budget gets a micro-batch of its own.
    """
    groups: list[list[Pair]] = []
    longest = 0
    for pair in sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]), reverse=True):
        length = len(pair[0]) + len(pair[1])
        if groups and (len(groups[-1]) + 1) * longest <= max_tokens:
            groups[-1].append(pair)
        else:
            groups.append([pair])
            longest = length
    return groups


def collate(pairs: Sequence[Pair], pad_token_id: int, device: torch.device | str = "cpu") -> MicroBatch:
    """Right-pad rows and mark their loss tokens: every target token, and nothing else.

    Args:
        pairs: Prompt ids and target ids of each row. Masks come from lengths, never from token values, so a
            padding id that equals the terminator hides nothing.
        pad_token_id: Any valid id.
        device: Where the tensors go.
    """
    num_positions = max(len(prompt) + len(target) for prompt, target in pairs)
    input_ids_BT = torch.full((len(pairs), num_positions), pad_token_id, dtype=torch.int64)
    attention_mask_BT = torch.zeros_like(input_ids_BT)
    rows: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    for row, (prompt, target) in enumerate(pairs):
        ids = [*prompt, *target]
        input_ids_BT[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        attention_mask_BT[row, : len(ids)] = 1
        rows += [row] * len(target)
        positions += range(len(prompt) - 1, len(ids) - 1)  # the state before a token predicts it
        labels += target
    return MicroBatch(
        input_ids=input_ids_BT.to(device),
        attention_mask=attention_mask_BT.to(device),
        loss_rows=torch.tensor(rows, dtype=torch.int64, device=device),
        loss_positions=torch.tensor(positions, dtype=torch.int64, device=device),
        labels=torch.tensor(labels, dtype=torch.int64, device=device),
        num_loss_tokens=len(labels),
    )
