"""What every part of the check has: its device, its time, the figures it found, and clocks that wait for the device."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from onpolicy_sdft.runs.files import write_json_atomic

_ERROR = 300  # letters of an error that are shown
#: Figures of a part: table, row, column.
Tables = dict[str, dict[str, dict[str, Any]]]


@dataclass
class Bench:
    """One part at work.

    Args:
        file: Where its figures go, after every one: a part that is killed keeps what it had.
        seconds: Its time.
        rehearse: Tiny sizes on the CPU.
    """

    file: Path
    seconds: float
    rehearse: bool
    tables: Tables = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def device(self) -> torch.device:
        """Where the part runs."""
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """The type that speed is measured in: a CPU's bfloat16 would only make a rehearsal slow."""
        return torch.float32 if self.rehearse else torch.bfloat16

    def pick(self, real: Any, rehearsed: Any) -> Any:
        """Return a size: the one that counts, or that of a rehearsal."""
        return rehearsed if self.rehearse else real

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.seconds - (time.perf_counter() - self.started)

    def note(self, table: str, row: str, **values: Any) -> None:
        """Add figures to a row of a table, and write all of them down."""
        self.tables.setdefault(table, {}).setdefault(row, {}).update(values)
        print(f"[{time.perf_counter() - self.started:6.1f} s] {table}: {row}: {values}", flush=True)
        self.write()

    def attempt(self, table: str, row: str, measure: Callable[[], Any], least_seconds: float = 0.0) -> None:
        """Measure something; note that there was no time for it, or how it failed, so that what comes next is tried."""
        if self.left() < least_seconds and not self.rehearse:
            self.note(table, row, left_out=f"{self.left():.0f} s were left")
            return
        try:
            measure()
        except Exception as error:
            traceback.print_exc()
            self.note(table, row, error=f"{type(error).__name__}: {str(error)[:_ERROR]}")
        self.free()

    def write(self, error: str | None = None) -> None:
        """Write down what was found, with the error that ended the part, if one did."""
        write_json_atomic(self.file, {"tables": self.tables, "error": error})

    def wait(self) -> None:
        """Wait until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def clock(self, run: Callable[[], Any]) -> float:
        """Return the seconds of a call."""
        self.wait()
        started = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - started

    def median_clock(self, run: Callable[[], Any], repeats: int = 5) -> float:
        """Return the median seconds of a call, after one that warms up."""
        run()
        return statistics.median(self.clock(run) for _ in range(repeats))

    def bandwidth(self) -> float:
        """Return the bytes a second the device moves when it copies, each counted as read and as written."""
        source = torch.empty(self.pick(1 << 30, 1 << 24), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.median_clock(lambda: target.copy_(source))

    def free(self) -> None:
        """Give memory that nothing uses any more back to the device."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
