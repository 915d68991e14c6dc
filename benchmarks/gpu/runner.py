"""Parts in processes of their own, one after the other, each with a limit; results are on disk after every one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.tables import markdown
from onpolicy_sdft.runs.files import read_json, write_json_atomic, write_text_atomic

_LEAST_SECONDS = 15.0  # a part is not started with less: imports alone take about as long there
_TAIL = 3000  # letters of a log that are kept of a part that failed


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the check.

    Args:
        name: Its name.
        seconds: The longest it may take.
        command: What to run, given the file for its figures and its seconds.
    """

    name: str
    seconds: float
    command: Callable[[Path, float], list[str]]


@dataclass
class Check:
    """The results of a check, on disk after every change.

    Args:
        out: Folder of ``check.json`` and ``check.md``; parts that are there already are kept until they are run again.
        facts: What the figures were measured with.
        seconds: All the time there is.
    """

    out: Path
    facts: dict[str, Any]
    seconds: float
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = time.perf_counter()
        self.out.mkdir(parents=True, exist_ok=True)
        if (self.out / "check.json").is_file():
            self.parts = read_json(self.out / "check.json")["parts"]

    def run(self, parts: Sequence[Part]) -> None:
        """Run parts in their order, as far as the time goes."""
        for part in parts:
            left = self.seconds - (time.perf_counter() - self._started)
            if left < min(_LEAST_SECONDS, part.seconds):
                self._keep(part.name, {"state": "left out", "error": f"{left:.0f} s were left", "tables": {}})
                continue
            self._keep(part.name, self._run(part, min(left, part.seconds)))

    def write(self) -> None:
        """Write both files."""
        write_json_atomic(self.out / "check.json", {"facts": self.facts, "parts": self.parts})
        write_text_atomic(self.out / "check.md", markdown(self.facts, self.parts))

    def _keep(self, name: str, result: dict[str, Any]) -> None:
        self.parts[name] = result
        self.write()
        print(f"{name}: {result['state']}", flush=True)

    def _run(self, part: Part, limit: float) -> dict[str, Any]:
        """Run one part, and end it with all its children where it takes too long."""
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            figures, log = Path(folder) / "figures.json", Path(folder) / "log"
            with log.open("w") as words:
                process = subprocess.Popen(
                    part.command(figures, limit), stdout=words, stderr=subprocess.STDOUT, start_new_session=True
                )  # fmt: skip
                try:
                    code = process.wait(timeout=limit)
                    state = "done" if code == 0 else "failed"
                except subprocess.TimeoutExpired:
                    code, state = None, "over its limit"
                finally:
                    _end(process)
            found = read_json(figures) if figures.is_file() else {"tables": {}, "error": None}
            last_words = log.read_text(errors="replace")[-_TAIL:]
        error = None if state == "done" else found["error"] or f"exit code {code}; its last words:\n{last_words}"
        return {
            "state": state, "seconds": round(time.perf_counter() - started, 1), "limit": round(limit, 1),
            "error": error, "tables": found["tables"],
        }  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and whatever it started."""
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
