"""Drafts: tokens somebody wrote before, proposed as what comes next.

They change how fast a text is written, never what is written. Each slot has one row of texts to look in, most
telling first: last epoch's rollout of the same example, the demonstration, and the completion so far. A draft is
what followed the last few tokens there: the longest n-gram wins, n from 4 down to 2, and of equals the first. Every
text is led by the end of the prompt, so that its beginning can be proposed before anything is written.

Shape letters: B rows, X positions of a row of texts, K draft tokens.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

MAX_NGRAM = 4
MIN_NGRAM = 2
SEPARATOR = -1  # between texts; no token has this id


def lay_out(prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Return a row of texts to look in, ready for the completion to be appended, and where each text ends in it."""
    lead = list(prompt[-MAX_NGRAM:])
    row: list[int] = []
    ends = []
    for text in texts:
        row += [*lead, *text, SEPARATOR]
        ends.append(len(row))
    return row + lead, ends


def look_up(
    source_BX: torch.Tensor, lengths_B: torch.Tensor, max_drafts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Propose what followed the last tokens of each row where they stood before.

    Args:
        source_BX: Rows of texts, the completion last, int64.
        lengths_B: Used part of each row.
        max_drafts: K.

    Returns:
        Drafts [B, K], how many of them are any good [B], and where each draft starts in its row [B].
    """
    size = source_BX.shape[1]
    places_X = torch.arange(size, device=source_BX.device)
    run_BX = torch.ones_like(source_BX, dtype=torch.bool)
    longest_BX = torch.zeros_like(source_BX)
    for back in range(MAX_NGRAM):
        last_B1 = source_BX.gather(1, (lengths_B - 1 - back).clamp(min=0)[:, None])
        same_BX = (source_BX == last_B1) & (lengths_B > back)[:, None]
        shifted_BX = torch.zeros_like(same_BX)
        shifted_BX[:, back:] = same_BX[:, : size - back]
        run_BX = run_BX & shifted_BX
        longest_BX = longest_BX + run_BX
    usable_BX = (longest_BX >= MIN_NGRAM) & (places_X < (lengths_B - 1)[:, None])
    # Longest n-gram first, of equals the first in the row.
    rank_BX = torch.where(usable_BX, longest_BX * size + (size - 1 - places_X), -1)
    best_B, place_B = rank_BX.max(-1)
    places_BK = place_B[:, None] + 1 + torch.arange(max_drafts, device=source_BX.device)
    drafts_BK = source_BX.gather(1, places_BK.clamp(max=size - 1))
    good_BK = (best_B >= 0)[:, None] & (places_BK < lengths_B[:, None]) & (drafts_BK != SEPARATOR)
    return drafts_BK, good_BK.to(torch.int64).cumprod(-1).sum(-1), place_B + 1


class DraftStore:
    """The last rollout of each example in each context, as token ids, bounded, for drafts and expected lengths.

    Args:
        max_tokens: Tokens kept over all examples; the texts stored longest ago are dropped first.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._texts: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._num_tokens = 0

    def get(self, example_id: str, prompt: Sequence[int]) -> tuple[int, ...]:
        """Return the last rollout of an example in a context; empty when there is none."""
        return self._texts.get(_name(example_id, prompt), ())

    def put(self, example_id: str, prompt: Sequence[int], token_ids: Sequence[int]) -> None:
        """Keep a rollout in place of the one before."""
        name = _name(example_id, prompt)
        self._num_tokens -= len(self._texts.pop(name, ()))
        self._texts[name] = tuple(token_ids)
        self._num_tokens += len(token_ids)
        while self._num_tokens > self.max_tokens:
            _, dropped = self._texts.popitem(last=False)
            self._num_tokens -= len(dropped)

    def state(self) -> dict[str, Any]:
        """Return everything as two flat tensors and the names, for a checkpoint."""
        return {
            "names": list(self._texts),
            "lengths": torch.tensor([len(text) for text in self._texts.values()], dtype=torch.int64),
            "tokens": torch.tensor([t for text in self._texts.values() for t in text], dtype=torch.int32),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`."""
        pieces = torch.split(state["tokens"], state["lengths"].tolist())
        self._texts = OrderedDict((n, tuple(p.tolist())) for n, p in zip(state["names"], pieces, strict=True))
        self._num_tokens = len(state["tokens"])


def _name(example_id: str, prompt: Sequence[int]) -> str:
    digest = hashlib.blake2b(repr(tuple(prompt)).encode(), digest_size=8).hexdigest()
    return f"{digest}|{example_id}"
