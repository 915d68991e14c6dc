"""Who gets a slot next, what it can share, and how prompts are packed into forwards. Host side, integers only.

Shape letters: S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onpolicy_sdft.types import RolloutRequest

_MIN_SHARED = 8  # shorter common beginnings are computed again rather than copied


@dataclass(slots=True)
class Seat:
    """One slot and the request in it."""

    slot: int
    request: int | None = None  # index within the call; None: free
    prompt: np.ndarray = None  # type: ignore[assignment]  # int64 prompt whose keys and values stand in the slot
    num_valid: int = 0  # leading prompt positions whose keys and values are there, also after the request has left


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """A stretch of a prompt to run through the layers."""

    slot: int
    first: int  # position
    count: int
    is_last: bool  # its last token is the prompt's last


class Scheduler:
    """Hands slots to requests, longest expected first, and shares beginnings that stand in a slot already.

    Args:
        requests: Of one call.
        num_slots: S.
        prefill_tokens: Prompt tokens of one forward.
    """

    def __init__(self, requests: Sequence[RolloutRequest], num_slots: int, prefill_tokens: int) -> None:
        self.requests = requests
        self.prefill_tokens = prefill_tokens
        self.waiting = sorted(range(len(requests)), key=lambda i: (-expected_tokens(requests[i]), i))[::-1]
        self.seats = [Seat(slot, None, np.zeros(0, dtype=np.int64)) for slot in range(num_slots)]
        self._unfilled: list[Seat] = []  # seats whose prompt is not run yet, in order
        self._targets: dict[int, np.ndarray] = {}  # slot -> prompt it is being filled with

    @property
    def live(self) -> list[Seat]:
        """Seats with a request."""
        return [seat for seat in self.seats if seat.request is not None]

    def admit(self) -> list[Seat]:
        """Seat as many waiting requests as there are free slots; each takes the free slot it shares most with."""
        seated = []
        free = [seat for seat in self.seats if seat.request is None]
        while self.waiting and free:
            index = self.waiting.pop()
            prompt = np.asarray(self.requests[index].prompt_token_ids, dtype=np.int64)
            seat = max(free, key=lambda s: (_shared(prompt, s.prompt, s.num_valid), -s.num_valid, -s.slot))
            free.remove(seat)
            seat.request = index
            self._unfilled.append(seat)
            self._targets[seat.slot] = prompt
            seated.append(seat)
        return seated

    def release(self, slot: int) -> None:
        """Free a slot; what stands in it can be shared until it is overwritten."""
        self.seats[slot].request = None

    def next_pack(self) -> tuple[list[tuple[int, int, int]], list[PromptPiece], int]:
        """Return the next forward of prompts: prefixes to copy first, pieces to run, and the tokens that were shared.

        A prompt that has its beginning in common with one of the same forward waits for the next one, so that it can
        be copied. A prompt longer than ``prefill_tokens`` is run in several forwards.

        Returns:
            Copies (from slot, to slot, positions), pieces, shared tokens. No pieces when nothing is left to run.
        """
        copies: list[tuple[int, int, int]] = []
        pieces: list[PromptPiece] = []
        in_pack: list[np.ndarray] = []
        room, num_shared = self.prefill_tokens, 0
        for seat in list(self._unfilled):
            prompt = self._targets[seat.slot]
            own = _shared(prompt, seat.prompt, seat.num_valid)
            donor = max(self.seats, key=lambda s: _shared(prompt, s.prompt, s.num_valid))
            best = _shared(prompt, donor.prompt, donor.num_valid)
            pending = max((_shared(prompt, other, len(other)) for other in in_pack), default=0)
            if pending >= best + _MIN_SHARED:
                continue
            if seat.prompt is not prompt:  # its first piece: what is there of the last occupant goes, but for this
                first = min(best if best >= own + _MIN_SHARED else own, len(prompt) - 1)
                first = first if first >= _MIN_SHARED else 0
                if donor is not seat and first > own:
                    copies.append((donor.slot, seat.slot, first))
                seat.prompt, seat.num_valid = prompt, first
                num_shared += first
            count = min(len(prompt) - seat.num_valid, room)
            if count < len(prompt) - seat.num_valid and pieces:
                break
            is_last = seat.num_valid + count == len(prompt)
            pieces.append(PromptPiece(seat.slot, seat.num_valid, count, is_last))
            in_pack.append(prompt)
            room -= count
            if is_last:
                self._unfilled.remove(seat)
            if room <= 0 or not is_last:
                break
        return copies, pieces, num_shared

    def filled(self, pieces: Sequence[PromptPiece]) -> None:
        """Note that pieces were run: their keys and values can be shared from now on."""
        for piece in pieces:
            self.seats[piece.slot].num_valid = piece.first + piece.count


def expected_tokens(request: RolloutRequest) -> int:
    """Return how long a completion is expected to become: the caller's guess, at most the limit."""
    guess = request.expected_new_tokens
    return request.max_new_tokens if guess is None else min(guess, request.max_new_tokens)


def _shared(prompt: np.ndarray, other: np.ndarray, num_valid: int) -> int:
    """Return how many leading tokens two prompts have in common, among the first ``num_valid`` of the other."""
    length = min(len(prompt), len(other), num_valid)
    if not length or prompt[0] != other[0]:
        return 0
    differing = np.flatnonzero(prompt[:length] != other[:length])
    return int(differing[0]) if len(differing) else length
