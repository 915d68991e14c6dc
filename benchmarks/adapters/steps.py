"""What the trainers of the step benchmark share: one step at a time, asked for over standard input.

A trainer runs in a process of its own. It prints {"ready": true}; each line it reads lets it take one optimizer step,
which it answers with the step's seconds, their split, its loss tokens and the process's peak memory in that step.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO, Any


class Channel:
    """Standard output for answers alone: what libraries print goes to standard error."""

    def __init__(self) -> None:
        self.answers: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def say(self, message: dict[str, Any]) -> None:
        """Answer with a line."""
        self.answers.write(json.dumps(message) + "\n")
        self.answers.flush()

    def wait(self) -> bool:
        """Wait for the next step to be asked for; false at the end. The peak of memory is counted anew."""
        line = sys.stdin.readline()
        forget_peak()
        return bool(line) and json.loads(line).get("step", False)


def forget_peak() -> None:
    """Count the peak of this process's memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Return the largest resident memory since :func:`forget_peak`, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status does not say VmHWM")
