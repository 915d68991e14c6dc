"""Runs that are only pretended: what a run leaves behind, without training."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy_sdft.runs.commands import Finish
from onpolicy_sdft.runs.files import write_json_atomic, write_jsonl_atomic


def leave_run(path: Path, score: float = 0.5, kl: float | None = 0.1, steps: int = 4, before: float = 0.25) -> None:
    """Write what a finished run of ``steps`` steps leaves, as far as a sweep reads it."""
    (path / "model").mkdir(parents=True)
    entry = {"label": "task", "retention": False, "score": score, "low": 0.0, "high": 1.0, "n": 8}
    after_kl = None if kl is None else {"mean": kl, "low": kl, "high": kl}
    write_json_atomic(
        path / "eval" / "summary.json",
        {
            "before": {"identity": "x", "sets": [{**entry, "score": before}], "kl": None},
            "after": {"identity": "x", "sets": [entry], "kl": after_kl},
        },
    )
    values = [
        {"train/total_loss_tokens": 10 * step, "time/step_seconds": 0.5, "rollout/mean_length": float(step)}
        for step in range(1, steps + 1)
    ]
    write_jsonl_atomic(
        path / "metrics.jsonl", [{"step": i + 1, "skipped": "", "values": value} for i, value in enumerate(values)]
    )


class Machine:
    """Pretends to run commands, and remembers them.

    Args:
        ends: Part of a run's name -> how it ends: an exit code with its reason, or nothing done at all.
        seconds: How long each takes.
    """

    def __init__(self, ends: dict[str, tuple[int, str]] | None = None, seconds: float = 0.0) -> None:
        self.ends = ends or {}
        self.seconds = seconds
        self.verbs: list[str] = []
        self.names: list[str] = []
        self.commands: list[list[str]] = []
        self.at_work = self.most_at_work = 0
        self._lock = threading.Lock()

    def __call__(self, command: Sequence[str], log: Path) -> Finish:
        verb, config_flag, options = command[command.index("onpolicy_sdft") + 1 :][:3]
        assert config_flag == "--config"
        with self._lock:
            self.verbs.append(verb)
            self.names.append(Path(options).stem)
            self.commands.append(list(command))
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        time.sleep(self.seconds)
        finish = self.end(verb, yaml.safe_load(Path(options).read_text()), Path(options).stem)
        with self._lock:
            self.at_work -= 1
        return finish

    def end(self, verb: str, options: dict[str, Any], name: str) -> Finish:
        """Leave what the command leaves."""
        code, reason = next((end for part, end in self.ends.items() if part in name), (0, ""))
        if verb == "distill" and not code:
            write_json_atomic(Path(options["distill"]["output_dir"]) / "summary.json", {})
        elif not code:
            leave_run(Path(options["train"]["output_dir"]), score=options["train"]["seed"] / 10)
        else:
            Path(options["train"]["output_dir"]).mkdir(parents=True, exist_ok=True)
        return Finish(code, reason, 1.0)


@pytest.fixture
def machine() -> type[Machine]:
    return Machine


@pytest.fixture
def finished_run() -> Any:
    return leave_run
