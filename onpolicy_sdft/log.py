"""Log lines on standard error: one line a message, above the bar of a job that is running.

Modules log with ``logging.getLogger(__name__)``, as any library does; nothing is shown until a handler is set up. The
commands call :func:`show`; so does a script or notebook that wants the same lines.
"""

from __future__ import annotations

import logging

from rich.console import Console, ConsoleRenderable
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.text import Text
from rich.traceback import Traceback

_PACKAGE = __name__.partition(".")[0]
_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red"}

#: One console for log lines and bars, so that a line is written above a bar and not into it. Lines are never wrapped.
console = Console(stderr=True, soft_wrap=True)


class LineFormatter(logging.Formatter):
    """``warning: text``; what is only information has no prefix."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


class LineHandler(RichHandler):
    """Rich's handler without columns for time, level and place: logs are read by people and by ``grep``."""

    def __init__(self) -> None:
        super().__init__(console=console, markup=False, highlighter=NullHighlighter(), keywords=[])
        self.setFormatter(LineFormatter())

    def render(
        self, *, record: logging.LogRecord, traceback: Traceback | None, message_renderable: ConsoleRenderable
    ) -> ConsoleRenderable:
        """Return the line alone, in the level's colour where the terminal has any."""
        if isinstance(message_renderable, Text):
            message_renderable.stylize(_STYLES.get(record.levelno, ""))
        return message_renderable


def show(rank: int = 0) -> None:
    """Write the package's log lines to standard error; calling it again changes nothing but the rank.

    Args:
        rank: Of this process among those that train together. The first one writes; from the others only errors.
    """
    package = logging.getLogger(_PACKAGE)
    package.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    if not any(isinstance(handler, LineHandler) for handler in package.handlers):
        package.addHandler(LineHandler())
    package.propagate = False  # a library that sets up the root logger would write every line again
