"""Requests that join a call while it runs: when its listener is asked for more, and what of it is still to be written.

When a request joins depends on decode forwards that were counted, never on how long the listener's own work takes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from onpolicy_sdft.rollout.backend import Listener
from onpolicy_sdft.types import Rollout, RolloutRequest

#: The listener is asked about a completion this many decode forwards after it ended: time to judge it meanwhile.
LAG = 16


class Joining:
    """Asks a listener for more at fixed points of one call."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._ends: list[int] = []  # decode forwards before each end, in order
        self._num_asked = 0  # completions that the listener was asked about

    def ended(self, index: int, rollout: Rollout, num_forwards: int) -> None:
        """Report a completion."""
        self._ends.append(num_forwards)
        self._listener.ended(index, rollout)

    def more(self, num_forwards: int | None) -> list[RolloutRequest]:
        """Return what joins after so many decode forwards; None where the call would stop."""
        num_ended = len(self._ends) if num_forwards is None else bisect_right(self._ends, num_forwards - LAG)
        if num_ended <= self._num_asked:
            return []
        self._num_asked = num_ended
        return list(self._listener.more(num_ended))


class Asked:
    """What one ``generate`` is to write and what it has; it listens to the calls this takes.

    One call does unless memory runs out, or a request joins that the slots cannot hold.
    """

    def __init__(self, requests: Sequence[RolloutRequest], listener: Listener) -> None:
        self.requests = list(requests)  # with those that joined
        self._found: list[Rollout | None] = [None] * len(requests)
        self._listener = listener
        self._places: list[int] = []  # which request each one of the running call is
        self._num_ended = 0
        self._num_before = 0  # of those, in calls before the running one

    def left(self) -> list[RolloutRequest]:
        """Return the requests of the next call: all that have no completion."""
        self._places = [index for index, rollout in enumerate(self._found) if rollout is None]
        self._num_before = self._num_ended
        return [self.requests[index] for index in self._places]

    def rollouts(self) -> list[Rollout]:
        """Return the completions, in the order in which they were asked for."""
        return [rollout for rollout in self._found if rollout is not None]

    def ended(self, index: int, rollout: Rollout) -> None:
        """Keep a completion of the running call, and pass it on."""
        place = self._places[index]
        self._found[place] = rollout
        self._num_ended += 1
        self._listener.ended(place, rollout)

    def more(self, num_ended: int) -> Sequence[RolloutRequest]:
        """Ask for more after so many completions of the running call."""
        more = self._listener.more(self._num_before + num_ended)
        self._places += range(len(self.requests), len(self.requests) + len(more))
        self.requests += more
        self._found += [None] * len(more)
        return more
