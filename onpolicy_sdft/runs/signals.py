"""Collect signals that ask to stop, instead of being stopped in the middle of something."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

_SAME_REQUEST_SECONDS = 1.0


@dataclass(slots=True)
class Signals:
    """Signals that arrived."""

    numbers: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.numbers)

    @property
    def first(self) -> signal.Signals | None:
        """The one that came first, if one came."""
        return signal.Signals(self.numbers[0]) if self.numbers else None


@contextmanager
def caught_signals(*, once: bool = False) -> Iterator[Signals]:
    """Collect SIGINT and SIGTERM instead of acting on them; outside the main thread nothing can be caught.

    Args:
        once: Let a second one act at once, as usual. One that comes within a second is the same request: a scheduler
            and a launcher both pass it on.

    Yields:
        The signals so far, also for other threads.
    """
    caught = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    began = 0.0

    def keep(number: int, frame: FrameType | None) -> None:
        nonlocal began
        if once and caught and time.monotonic() - began >= _SAME_REQUEST_SECONDS:
            put_back()
            signal.raise_signal(number)
            return
        began = began if caught else time.monotonic()
        caught.numbers.append(number)

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, keep)
    try:
        yield caught
    finally:
        put_back()
