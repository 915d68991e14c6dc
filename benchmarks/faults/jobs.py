"""The commands that the campaign of kills starts and kills, and what each must leave in the end.

A job is started with the same command again and again, as a user or a scheduler would, until it has ended by itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.faults.runs import differences, num_steps, sequence_differences
from onpolicy_sdft.runs.files import read_json

SDFT = [sys.executable, "-m", "onpolicy_sdft"]
STEPS = 12
#: A run of a tiny model that keeps what it draws, with scores before, during and after.
OPTIONS: dict[str, Any] = {
    "task.name": "exact", "lora.r": 4, "lora.dropout": 0.1, "rollout.max_new_tokens": 16, "rollout.deterministic": True,
    "rollout.num_slots": 8, "screening.truncated": "keep", "screening.looping": "keep", "screening.length": "keep",
    "screening.check": "keep", "objective.name": "reverse_kl", "teacher.weights": "ema", "train.batch_size": 8,
    "train.checkpoint_steps": 2, "train.warn_truncated_rate": 1.0, "train.warn_length_ratio": 1000,
    "train.rank_timeout_seconds": 60, "probe.action": "warn", "probe.num_examples": 8, "gate.action": "continue",
    "eval.kl_prompts": 4, "eval.kl_max_new_tokens": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A command, and how what it leaves is compared with what it left undisturbed."""

    name: str
    command: Callable[[Path], list[str]]  # of its output directory
    compare: Callable[[Path, Path], list[str]]
    phases: tuple[str, ...]  # where it is struck, besides anywhere; see ``marks``
    steps: Callable[[Path], int]  # how far it is
    num_ranks: int = 1


def flags(options: dict[str, Any]) -> list[str]:
    """Return options as a user types them."""
    return [
        part
        for name, value in options.items()
        for part in (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))
    ]


def write_rows(folder: Path, num_rows: int = 96) -> None:
    """Write rows of two tasks."""
    for name in ("one", "two"):
        rows = (
            {"prompt": f"Say number {number} of {name}.", "response": f"{name} {number}."} for number in range(num_rows)
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def training(folder: Path, num_ranks: int, launch: str) -> Job:
    """One run, on several ranks."""
    options = OPTIONS | {
        "model.name": folder / "model", "data.path": folder / "one.jsonl", "train.max_steps": STEPS,
        "eval.path": folder / "one.jsonl", "eval.limit": 16, "train.resume": "auto",
    }  # fmt: skip
    validation = [{"label": "same", "data": {"path": str(folder / "one.jsonl"), "limit": 8}, "task": {"name": "exact"}}]
    (folder / "train.yaml").write_text(yaml.safe_dump({"eval": {"validation": validation, "every_steps": 3}}))
    accelerate = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", launch]
    start = SDFT if num_ranks == 1 else [*accelerate, "--num_processes", str(num_ranks), "-m", "onpolicy_sdft"]

    def command(output: Path) -> list[str]:
        return [
            *start,
            "train",
            "--config",
            str(folder / "train.yaml"),
            *flags(options | {"train.output_dir": output}),
        ]

    phases = ("checkpoint", "rollout", "learning", "evaluation", "export")
    return Job("training", command, differences, phases, num_steps, num_ranks)


def sequence(folder: Path) -> Job:
    """Two tasks, the second on the merged model of the first."""
    path = folder / "sequence.yaml"
    common = {**OPTIONS, "model.name": str(folder / "model"), "train.max_steps": 6}
    stages = [
        {"label": name, "data": {"path": str(folder / f"{name}.jsonl")}, "task": {"name": "exact"},
         "test": {"path": str(folder / f"{name}.jsonl"), "limit": 8}}
        for name in ("one", "two")
    ]  # fmt: skip
    common.pop("task.name")
    path.write_text(yaml.safe_dump({"options": common, "stages": stages, "adapter_handoff": "merge"}))

    def steps(output: Path) -> int:
        return sum(num_steps(log.parent) for log in output.glob("*/metrics.jsonl"))

    return Job(
        "sequence", lambda output: [*SDFT, "continual", "--config", str(path), "--output_dir", str(output)],
        sequence_differences, ("hand-over", "evaluation", "export"), steps,
    )  # fmt: skip


def sweep(folder: Path) -> Job:
    """Two learning rates."""
    path = folder / "sweep.yaml"
    common = {
        **OPTIONS,
        "model.name": str(folder / "model"),
        "data.path": str(folder / "one.jsonl"),
        "train.max_steps": 4,
    }
    common |= {"eval.path": str(folder / "one.jsonl"), "eval.limit": 8}
    metrics = ["eval/test/score", "train/steps", "loss/total"]
    path.write_text(yaml.safe_dump({"options": common, "axes": {"optim.lr": [1e-3, 1e-2]}, "metrics": metrics}))

    def compare(whole: Path, disturbed: Path) -> list[str]:
        names = sorted(run.name for run in (whole / "runs").iterdir())
        found = [text for name in names for text in differences(whole / "runs" / name, disturbed / "runs" / name)]
        same = (whole / "table.csv").read_text() == (disturbed / "table.csv").read_text()
        return found if same else [*found, "table.csv differs"]

    def steps(output: Path) -> int:
        return sum(num_steps(log.parent) for log in output.glob("runs/*/metrics.jsonl"))

    return Job(
        "sweep", lambda output: [*SDFT, "sweep", "--config", str(path), "--output_dir", str(output)], compare,
        ("rollout", "evaluation"), steps,
    )  # fmt: skip


def distillation(folder: Path) -> Job:
    """A data set that is rewritten once."""
    names = ("lora.", "train.", "probe.", "gate.", "eval.", "objective.", "teacher.")
    options = {name: value for name, value in OPTIONS.items() if not name.startswith(names)}
    options |= {"model.name": folder / "model", "data.path": folder / "one.jsonl", "distill.resume": "auto"}
    options["distill.batch_size"] = 8

    def compare(whole: Path, disturbed: Path) -> list[str]:
        found = []
        if (whole / "distilled.jsonl").read_bytes() != (disturbed / "distilled.jsonl").read_bytes():
            found.append("the rewritten rows differ")
        if read_json(whole / "summary.json") != read_json(disturbed / "summary.json"):
            found.append("the summary differs")
        return found

    def steps(output: Path) -> int:
        rows = output / "distilled.jsonl"
        return rows.read_bytes().count(b"\n") if rows.is_file() else 0

    return Job(
        "distillation", lambda output: [*SDFT, "distill", *flags(options | {"distill.output_dir": output})], compare,
        ("rollout",), steps,
    )  # fmt: skip
