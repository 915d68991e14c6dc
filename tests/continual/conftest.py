"""A sequence of two tiny tasks, and a way to run its commands in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy_sdft.cli.main import main
from onpolicy_sdft.config.load import load_plan
from onpolicy_sdft.config.sequence import SequenceConfig
from onpolicy_sdft.runs.commands import Finish


def rows(path: Path, words: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": f"say {word}", "response": word}) + "\n" for word in words))
    return str(path)


@pytest.fixture
def tiny(tmp_path: Path, model_dir: Path) -> Callable[..., SequenceConfig]:
    """Return a maker of sequences: options of :class:`SequenceConfig` by keyword."""
    data = {
        "red": rows(tmp_path / "red.jsonl", ["one", "two", "three", "four", "five", "six"]),
        "blue": rows(tmp_path / "blue.jsonl", ["seven", "eight", "nine", "ten", "eleven"]),
        "held": rows(tmp_path / "held.jsonl", ["twelve", "thirteen"]),
    }
    run = {
        "model": {"name": str(model_dir)},
        "lora": {"r": 4, "alpha": 8},
        "rollout": {"max_new_tokens": 8},
        "screening": {"truncated": "keep", "looping": "keep", "length": "keep", "check": "keep"},
        "optim": {"lr": 0.02, "warmup_steps": 0},
        "train": {"batch_size": 4, "max_steps": 2, "micro_batch_tokens": 400, "checkpoint_steps": 1},
        "eval": {
            "kl_prompts": 2, "kl_max_new_tokens": 4,
            "sets": [{"label": "held", "data": {"path": data["held"]}, "task": {"name": "exact"}, "max_new_tokens": 4}],
        },
    }  # fmt: skip
    stages = [
        {
            "label": label, "data": {"path": data[label]}, "task": {"name": "exact"}, "test": {"path": data[label]},
            "validation": {"path": data[label], "limit": 3}, "max_new_tokens": 6,
        }
        for label in ("red", "blue")
    ]  # fmt: skip
    path = tmp_path / "sequence.yaml"
    path.write_text(yaml.safe_dump({"run": run, "stages": stages, "output_dir": str(tmp_path / "sequence")}))

    def make(**options: Any) -> SequenceConfig:
        import dataclasses

        return dataclasses.replace(load_plan(SequenceConfig, "test", "", ["--config", str(path)]), **options)

    make.path = path  # type: ignore[attr-defined]
    return make


class InProcess:
    """Runs the program's commands without a process each, and remembers them."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.before: Callable[[list[str]], Finish | None] = lambda command: None

    def __call__(self, command: Sequence[str], log: Path, *, echo: bool = False, **ignored: Any) -> Finish:
        arguments = list(command[command.index("onpolicy_sdft") + 1 :])
        self.commands.append(arguments)
        finish = self.before(arguments)
        if finish is not None:
            return finish
        code = main(arguments)
        return Finish(code, "" if code == 0 else "failed", 0.0)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    runner = InProcess()
    monkeypatch.setattr("onpolicy_sdft.report.html.build_report", lambda run: [])  # plots of each run take seconds
    monkeypatch.setattr("onpolicy_sdft.continual.sequence.run_logged", runner)
    return runner
