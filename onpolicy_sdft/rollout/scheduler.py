"""Who gets a slot next, what it can share, and how prompts are packed into forwards. Host side, integers only.

Shape letters: S slots.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onpolicy_sdft.types import RolloutRequest

_MIN_SHARED = 8  # shorter common beginnings are computed again rather than copied


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """A stretch of a prompt to run through the layers."""

    slot: int
    first: int  # position
    count: int
    is_last: bool  # its last token is the prompt's last


class Scheduler:
    """Hands slots to requests, longest expected first, and shares beginnings that stand in a slot already.

    A blended request gets two slots at once or waits, and with it all behind it: shorter ones must not starve it.

    Args:
        requests: Of one call; a list that grows, where :meth:`add` is used.
        num_slots: S.
        prefill_tokens: Prompt tokens of one forward.
    """

    def __init__(self, requests: Sequence[RolloutRequest], num_slots: int, prefill_tokens: int) -> None:
        self.requests = requests
        self.prefill_tokens = prefill_tokens
        self.request_of: list[int | None] = [None] * num_slots  # index within the call; None: free, or a partner
        self.partner_of: dict[int, int] = {}  # slot of a blended request -> slot of its bare prompt
        self._is_free = np.ones(num_slots, dtype=bool)
        self._waiting = sorted(range(len(requests)), key=self._rank)
        longest = max((len(prompt) for request in requests for prompt in request.prompts), default=0)
        self._wanted = _Prompts(num_slots, longest)  # what each slot is being filled with
        self._there = _Prompts(num_slots, longest)  # whose keys and values stand in it, also after the request has left
        self._unfilled: list[int] = []  # slots whose prompt is not run yet, in order
        self._started: set[int] = set()  # of those, the ones whose first piece was planned

    def _rank(self, index: int) -> tuple[int, int]:
        return expected_tokens(self.requests[index]), -index  # the last is the next

    def add(self, index: int) -> None:
        """Let a request wait that has been put behind the others since."""
        bisect.insort(self._waiting, index, key=self._rank)
        for prompts in (self._wanted, self._there):
            prompts.widen(max(map(len, self.requests[index].prompts)))

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def live(self) -> list[int]:
        """Slots with a request."""
        return [slot for slot, request in enumerate(self.request_of) if request is not None]

    def admit(self) -> list[int]:
        """Give free slots to waiting requests; return the slots, without those of bare prompts."""
        seated: list[int] = []
        while self._waiting:
            prompts = self.requests[self._waiting[-1]].prompts
            if self._is_free.sum() < len(prompts):
                break
            slot, *partners = [self._take(prompt) for prompt in prompts]
            self.request_of[slot] = self._waiting.pop()
            self.partner_of.update((slot, partner) for partner in partners)
            seated.append(slot)
        return seated

    def _take(self, prompt: Sequence[int]) -> int:
        """Give a prompt the free slot that it shares most with."""
        ids = np.asarray(prompt, dtype=np.int64)
        # Of slots that share as much, the one whose content is the least loss.
        worth = self._there.shared_with(ids) * (1 << 32) - self._there.lengths
        slot = int(np.where(self._is_free, worth, np.iinfo(np.int64).min).argmax())
        self._is_free[slot] = False
        self._wanted.put(slot, ids, len(ids))
        self._unfilled.append(slot)
        return slot

    def release(self, slot: int) -> None:
        """Free a slot and its partner's; what stands in them can be shared until it is overwritten."""
        self.request_of[slot] = None
        self._is_free[slot] = True
        if slot in self.partner_of:
            self._is_free[self.partner_of.pop(slot)] = True

    def next_pack(self) -> tuple[list[tuple[int, int, int]], list[PromptPiece], int]:
        """Return the next forward of prompts: prefixes to copy first, pieces to run, and the tokens that were shared.

        A prompt that has its beginning in common with one of the same forward waits for the next one, so that it can
        be copied. A prompt longer than ``prefill_tokens`` is run in several forwards.

        Returns:
            Copies (from slot, to slot, positions), pieces, shared tokens. No pieces when nothing is left to run.
        """
        copies: list[tuple[int, int, int]] = []
        pieces: list[PromptPiece] = []
        in_pack = np.zeros(len(self.request_of), dtype=bool)
        room, num_shared = self.prefill_tokens, 0
        for slot in list(self._unfilled):
            prompt = self._wanted.prompt(slot)
            if slot not in self._started:
                shared = self._there.shared_with(prompt)
                donor = int(shared.argmax())
                if in_pack.any() and self._wanted.shared_with(prompt)[in_pack].max() >= shared[donor] + _MIN_SHARED:
                    continue
                if room < self.prefill_tokens and len(prompt) - shared[donor] > room:
                    break
                donor = donor if shared[donor] >= shared[slot] + _MIN_SHARED else slot
                first = min(int(shared[donor]), len(prompt) - 1)  # the last token is run: it is drawn from
                first = first if first >= _MIN_SHARED else 0
                if donor != slot and first:
                    copies.append((donor, slot, first))
                self._there.put(slot, prompt, first)
                self._started.add(slot)
                num_shared += first
            first = int(self._there.lengths[slot])
            count = min(len(prompt) - first, room)
            is_last = first + count == len(prompt)
            pieces.append(PromptPiece(slot, first, count, is_last))
            in_pack[slot] = True
            room -= count
            if is_last:
                self._unfilled.remove(slot)
                self._started.discard(slot)
            if room <= 0 or not is_last:
                break
        return copies, pieces, num_shared

    def filled(self, pieces: Sequence[PromptPiece]) -> None:
        """Note that pieces were run: their keys and values can be shared from now on."""
        for piece in pieces:
            self._there.lengths[piece.slot] = piece.first + piece.count


class _Prompts:
    """A prompt a slot, and how much of it counts."""

    def __init__(self, num_slots: int, longest: int) -> None:
        self._ids: np.ndarray[Any, Any] = np.full((num_slots, longest), -1, dtype=np.int64)
        self.lengths = np.zeros(num_slots, dtype=np.int64)
        self._whole = np.zeros(num_slots, dtype=np.int64)

    def widen(self, longest: int) -> None:
        missing = max(0, longest - self._ids.shape[1])
        self._ids = np.pad(self._ids, ((0, 0), (0, missing)), constant_values=-1)

    def put(self, slot: int, prompt: np.ndarray[Any, Any], length: int) -> None:
        self._ids[slot, : len(prompt)] = prompt
        self._whole[slot] = len(prompt)
        self.lengths[slot] = length

    def prompt(self, slot: int) -> np.ndarray[Any, Any]:
        return self._ids[slot, : self._whole[slot]].copy()

    def shared_with(self, prompt: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return how many leading tokens a prompt has in common with what counts of each slot's: [S]."""
        differs = self._ids[:, : len(prompt)] != prompt
        first: np.ndarray[Any, Any] = np.where(differs.any(1), differs.argmax(1), len(prompt))
        shared: np.ndarray[Any, Any] = np.minimum(first, self.lengths)
        return shared


def expected_tokens(request: RolloutRequest) -> int:
    """Return how long a completion is expected to become: the caller's guess, at most the limit."""
    guess = request.expected_new_tokens
    return request.max_new_tokens if guess is None else min(guess, request.max_new_tokens)
