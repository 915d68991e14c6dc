"""A sequence of two tiny tasks whose commands run in this process, and runs that are only pretended."""

from __future__ import annotations

import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import say, write_rows

from onpolicy_sdft.cli.main import main
from onpolicy_sdft.config.load import load_config, load_plan
from onpolicy_sdft.config.schema import RunConfig
from onpolicy_sdft.config.sequence import SequenceConfig
from onpolicy_sdft.experiments.sequence import run_sequence
from onpolicy_sdft.runs.commands import Finish
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import write_json_atomic, write_jsonl_atomic


def leave_run(path: Path, score: float = 0.5, kl: float | None = 0.1, steps: int = 4, before: float = 0.25) -> None:
    """Write what a finished run of ``steps`` steps leaves, as far as a sweep reads it."""
    (path / "model").mkdir(parents=True)
    (path / "report.html").touch()
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


def rows(path: Path, words: Sequence[str]) -> str:
    return str(write_rows(path, say(*words)))


def make_tiny(tmp_path: Path, model_dir: Path) -> Callable[..., SequenceConfig]:
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
        return dataclasses.replace(load_plan(SequenceConfig, "test", "", ["--config", str(path)]), **options)

    make.path = path  # type: ignore[attr-defined]
    return make


@pytest.fixture
def tiny(tmp_path: Path, model_dir: Path) -> Callable[..., SequenceConfig]:
    return make_tiny(tmp_path, model_dir)


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

    def end_without_update(self, command: Sequence[str]) -> Finish:
        """End a training command as one does that made no update any more."""
        run = Path(yaml.safe_load(Path(command[-1]).read_text())["train"]["output_dir"])
        run.mkdir(parents=True, exist_ok=True)
        reason = "5 steps in a row made no update"
        write_json_atomic(run / "result.json", {"reason": reason, "error": "NoUpdateError"})
        return Finish(2, f"sdft train: {reason}", 0.0)


def leave_report(run: RunDirectory) -> list[Path]:
    """Leave an empty report, without which no run is done: the plots of each take seconds."""
    run.report_path.touch()
    return [run.report_path]


def keep_loads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """Keep configs by the text of their files: a sequence is planned again and again, a tenth of a second each."""
    kept: dict[Any, RunConfig] = {}

    def load(*files: str | Path, **overrides: Any) -> RunConfig:
        if not all(Path(file).is_file() for file in files):
            return load_config(*files, **overrides)
        key = Path.cwd(), *(Path(file).read_bytes() for file in files), repr(overrides)
        if key not in kept:
            kept[key] = load_config(*files, **overrides)
        return copy.deepcopy(kept[key])

    for module in ("sequence", "sequence_plan"):
        monkeypatch.setattr(f"onpolicy_sdft.experiments.{module}.load_config", load)
    return load


def run_in_process(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Run the commands of sequences in this process, each text of options loaded once."""
    runner, load = InProcess(), keep_loads(monkeypatch)
    monkeypatch.setattr("onpolicy_sdft.report.html.build_report", leave_report)
    monkeypatch.setattr("onpolicy_sdft.experiments.sequence.run_logged", runner)
    for verb in ("train", "distill"):
        monkeypatch.setattr(f"onpolicy_sdft.cli.{verb}.make_parser", lambda prog, description: prog)
        monkeypatch.setattr(f"onpolicy_sdft.cli.{verb}.parse", lambda prog, arguments: (load(arguments[1]), None))
    return runner


@pytest.fixture(autouse=True)
def _each_text_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_loads(monkeypatch)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    return run_in_process(monkeypatch)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A sequence that ran to its end without a stop, to be read only."""

    make: Callable[..., SequenceConfig]  # what its config came from
    output: Path
    commands: list[list[str]]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    make = make_tiny(folder, model_dir)
    with pytest.MonkeyPatch.context() as monkeypatch:
        runner = run_in_process(monkeypatch)
        output = run_sequence(make(), ["sdft"]).parent
    return Whole(make, output, runner.commands)
