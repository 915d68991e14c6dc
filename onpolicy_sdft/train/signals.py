"""Stop between two steps when asked to, instead of in the middle of one."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SAME_REQUEST_SECONDS = 1.0


class StopRequest:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGTERM or Ctrl-C into a request; a later one acts at once, as usual.

    One that comes within a second is the same request: a scheduler and a launcher both pass it on.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # handlers can only be set there
        yield request
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    asked_at = -math.inf

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if request.signal is None:
            request.signal, asked_at = signal.Signals(number), now
        elif now - asked_at >= _SAME_REQUEST_SECONDS:
            for other, handler in previous.items():
                signal.signal(other, handler)
            signal.raise_signal(number)

    for number in previous:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
