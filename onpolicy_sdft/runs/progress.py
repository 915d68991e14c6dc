"""How far a job is: a live bar on a terminal, plain lines elsewhere.

Both show the same text. Whether the stream is a terminal is asked of the stream alone.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Column, Table
from rich.text import Text

from onpolicy_sdft import log
from onpolicy_sdft.runs.plain_table import format_plain_table, numeric_columns
from onpolicy_sdft.types import RolloutProgress

Field = float | int | str | None


class _Bar(RichProgress):
    """A bar in a frame."""

    def __init__(self, *columns: ProgressColumn, frame: Callable[[RenderableType], RenderableType], console: Console):
        self._frame = frame
        super().__init__(*columns, console=console, expand=True)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self._frame(self.make_tasks_table(self.tasks))


class Progress:
    """Progress of one job: ``with Progress("train", 200, "steps") as p: p.update(loss=1.2)``."""

    def __init__(
        self,
        description: str,
        total: int | None = None,
        unit: str = "",
        *,
        start: int = 0,
        stream: TextIO | None = None,
        every_seconds: float = 5.0,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe the job; nothing is shown before the ``with`` block is entered.

        Args:
            description: What is being done, e.g. ``train``.
            total: How many units there are; None when nobody knows.
            unit: What is counted, e.g. ``steps``.
            start: Units that were done before (a resumed run); they do not count in the ETA.
            stream: Where to; None is standard error.
            every_seconds: Least time between two plain lines.
            enabled: False shows nothing, for all ranks but the first.
            clock: Seconds that never go back.
        """
        self.description = description
        self.total = total
        self.unit = unit
        self.completed = start
        self._start = start
        # That of the log lines, which are then written above the bar.
        self._console = log.console if stream is None else Console(file=stream, force_terminal=True)
        self._stream = self._console.file
        self._every_seconds = every_seconds
        self._enabled = enabled
        self._clock = clock
        self._fields: dict[str, Field] = {}
        self._live: _Bar | None = None
        self._began: float | None = None
        self._paused_seconds = 0.0
        self._last_line_at = -math.inf
        self._last_line = ""

    def __enter__(self) -> Self:
        """Start the clock and show the job."""
        self._began = self._clock()
        self._live = self._start_live() if self._enabled else None
        if self._live is None:
            self._write_line(self._text())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen, also after an exception."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        else:
            self._write_line(self._text())

    def begin_at(self, completed: int) -> None:
        """Count from what an earlier run did; call it before the clock starts."""
        self.completed = self._start = completed

    def update(self, advance: int = 1, **fields: Field) -> None:
        """Count finished units and show the newest figures.

        Args:
            advance: Units finished since the last call.
            **fields: Figures by name. They stay until given again; None takes one away. A name
                that ends in ``_rate`` is shown in per cent.
        """
        self.completed += advance
        self._fields.update(fields)
        if self._live is not None:
            task = self._live.task_ids[0]
            count, details = self._count(), self._bar_details()
            self._live.update(task, completed=self.completed, count=count, details=details)
        elif self._began is not None and self._clock() - self._last_line_at >= self._every_seconds:
            self._write_line(self._text())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar off the screen while another job shows its own; that time is not counted.

        Yields:
            Nothing.
        """
        began = self._clock()
        live = self._live
        if live is not None:
            live.live.transient = True
            live.stop()
        try:
            yield
        finally:
            self._paused_seconds += self._clock() - began
            if live is not None:
                live.live.transient = False
                live.start()

    def _start_live(self) -> _Bar | None:
        if not _is_terminal(self._stream):
            return None
        if self._console.is_dumb_terminal:
            return None
        live = _Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn(
                "{task.fields[details]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            TimeElapsedColumn(),
            frame=self._frame,
            console=self._console,
        )
        live.add_task(
            self.description,
            total=self.total,
            completed=self.completed,
            count=self._count(),
            details=self._bar_details(),
        )
        live.start()
        return live

    def _frame(self, bar: RenderableType) -> RenderableType:
        """Return what a terminal shows, around the bar; called from the thread that draws."""
        return bar

    def _bar_details(self) -> str:
        """Return what stands beside the bar."""
        return self._details()

    def _text(self) -> str:
        elapsed = f"elapsed {format_seconds(self._elapsed())}"
        parts = [f"{self.description} {self._count()}", self._details(), elapsed]
        return ", ".join(part for part in parts if part)

    def _count(self) -> str:
        count = str(self.completed) if self.total is None else f"{self.completed}/{self.total}"
        return f"{count} {self.unit}".rstrip()

    def _details(self) -> str:
        parts = [
            f"{name.replace('_per_second', '/s').replace('_', ' ')} {format_figure(name, value)}"
            for name, value in self._fields.items()
            if value is not None
        ]
        return ", ".join([*parts, *self._eta()])

    def _eta(self) -> list[str]:
        """Return the time that is left, where there is anything to tell it from."""
        done = self.completed - self._start
        if self.total is None or done <= 0 or self.completed >= self.total:
            return []
        return [f"eta {format_seconds(self._elapsed() / done * (self.total - self.completed))}"]

    def _elapsed(self) -> float:
        began = self._clock() if self._began is None else self._began
        return self._clock() - began - self._paused_seconds

    def _write_line(self, line: str) -> None:
        if self._enabled and line != self._last_line:
            self._print(line)
            self._last_line = line
            self._last_line_at = self._clock()

    def _print(self, line: str) -> None:
        # Flushed at once: a pipe or a log file is otherwise buffered by the kilobyte.
        print(line, file=self._stream, flush=True)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    stream: TextIO | None = None,
) -> None:
    """Print a table: ruled on a terminal, aligned plain text elsewhere.

    Args:
        title: Line above the table.
        columns: Column headings.
        rows: Cells, one sequence a row, as long as ``columns``.
        stream: Where to; None is standard output.
    """
    stream = sys.stdout if stream is None else stream
    if not _is_terminal(stream):
        print(f"{title}\n{format_plain_table(columns, rows)}", file=stream, flush=True)
        return
    table = Table(title=Text(title), title_justify="left")
    for column, numeric in zip(columns, numeric_columns(columns, rows), strict=True):
        table.add_column(Text(column), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: no markup is read out of the cells
    Console(file=stream, force_terminal=True).print(table)


def format_seconds(seconds: float) -> str:
    """Write a duration as people read it.

    Args:
        seconds: The duration, in seconds.

    Returns:
        E.g. ``0:42``, ``10:55`` or ``1:02:03``.
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_figure(name: str, value: Field) -> str:
    """Write a figure for people: a share (a name that ends in ``_rate``) in per cent, others in four digits or more."""
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if name.endswith("_rate"):
        return f"{value:.0%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _is_terminal(stream: IO[str]) -> bool:
    return bool(getattr(stream, "isatty", lambda: False)())


def show_writing(progress: Progress) -> Callable[[RolloutProgress], None]:
    """Return a rollout callback that shows what is being written beside a bar that counts something else."""

    def on_progress(advance: RolloutProgress) -> None:
        progress.update(0, writing=advance.num_tokens, slots=advance.slots_in_use, accept_rate=advance.accept_rate)

    return on_progress


def tick(progress: Progress) -> Callable[[RolloutProgress], None]:
    """Return a rollout callback that advances a bar by finished completions and shows speed, slots and drafts."""
    written, started = 0, time.perf_counter()

    def on_progress(advance: RolloutProgress) -> None:
        nonlocal written
        written += advance.num_tokens
        speed = written / max(1e-9, time.perf_counter() - started)
        progress.update(
            advance.num_finished, tokens=written, tokens_per_second=speed, slots=advance.slots_in_use,
            accept_rate=advance.accept_rate,
        )  # fmt: skip

    return on_progress
