"""Read the runs of a sequence into its accuracy matrix and metrics; every figure says which files it is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.experiments.metrics import (
    JOINT_METRICS,
    METRICS,
    Array,
    Statistic,
    forgetting_by_task,
    matrix,
    paired_interval,
)
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json, read_jsonl

TrainingRow = tuple[RunDirectory, str]  # a run and the moment it was scored: "before" or "after"


def collect(
    output: Path,
    *,
    labels: Sequence[str],
    retention_labels: Sequence[str],
    stages: Sequence[tuple[str, Path]],
    joint: bool,
    is_whole: bool,
) -> dict[str, Any]:
    """Return what ``sequence.json`` says of the stages that are done.

    Args:
        output: The sequence's directory; paths are relative to it.
        labels: Of the tasks, in order.
        retention_labels: Of the sets that are never trained.
        stages: Label and run directory of the stages that are done.
        joint: Whether the one stage trained all tasks.
        is_whole: Whether all stages are done: metrics are of whole sequences only.

    Raises:
        RunDirectoryError: If records are missing, stages were scored on other questions, or a task has no check.
    """
    runs = [RunDirectory.open(path, require=["config.yaml", "eval"]) for _, path in stages]
    rows: list[TrainingRow] = [(runs[0], "before"), *((run, "after") for run in runs)]
    summaries = [read_json(run.eval_summary_path)[moment] for run, moment in rows]
    correct = [read_correct(rows, label) for label in labels]
    retained = [read_correct(rows, label) for label in retention_labels]
    everything = [*labels, *retention_labels]
    return {
        "labels": list(labels),
        "retention_labels": list(retention_labels),
        "joint": joint,
        "stages": [{"label": label, **_of_run(run, output)} for (label, _), run in zip(stages, runs, strict=True)],
        "n": {label: each.shape[1] for label, each in zip(everything, (*correct, *retained), strict=True)},
        "matrix": _scores(summaries, labels),
        "retention": _scores(summaries, retention_labels),
        "kl": [summary["kl"] for summary in summaries],
        "metrics": _metrics(correct, retained, JOINT_METRICS if joint else tuple(METRICS)) if is_whole else {},
        "forgetting_by_task": _forgetting(correct, retained, labels) if is_whole and not joint else {},
        "records": {
            label: [_relative(run.eval_records_path(moment, label), output) for run, moment in rows]
            for label in everything
        },
        "manifest": read_json(runs[0].manifest_path),
    }


def read_correct(rows: Sequence[TrainingRow], label: str) -> Array:
    """Return the share of right samples of every question after every stage: [T + 1, E].

    Raises:
        RunDirectoryError: If two stages were not asked the same questions.
    """
    return read_answers(rows, label)[0]


def read_answers(rows: Sequence[TrainingRow], label: str) -> tuple[Array, list[str]]:
    """Return :func:`read_correct` and the questions it is of.

    Raises:
        RunDirectoryError: If two stages were not asked the same questions.
    """
    found: list[list[float]] = []
    asked: list[str] | None = None
    for run, moment in rows:
        path = run.eval_records_path(moment, label)
        if not path.is_file():
            raise RunDirectoryError(f"{path} does not exist: that stage was not scored on {label!r}.")
        shares: dict[str, list[bool]] = {}
        for record in read_jsonl(path):
            question = f"{record['example_id']} {record['prompt']}"
            shares.setdefault(question, []).append(bool(record["correct"]))
        if asked is not None and list(shares) != asked:
            raise RunDirectoryError(f"{path} holds other questions than the stage before. Fix: another output_dir.")
        asked = list(shares)
        found.append([float(np.mean(samples)) for samples in shares.values()])
    return np.array(found), asked or []


def rows_of(sequence: Path) -> list[TrainingRow]:
    """Return the runs of a sequence by row of its matrix, from its ``sequence.json``."""
    stages = [RunDirectory(sequence / stage["run"]) for stage in read_json(sequence / "sequence.json")["stages"]]
    return [(stages[0], "before"), *((run, "after") for run in stages)]


def _of_run(run: RunDirectory, output: Path) -> dict[str, Any]:
    metrics = run.read_metrics()
    result = read_json(run.result_path) if run.result_path.is_file() else {}
    return {
        "ended_by": result.get("reason"),
        "best_score": result.get("best_score"),
        "run": _relative(run.path, output),
        "steps": metrics[-1]["step"] if metrics else 0,
        "loss_tokens": metrics[-1]["values"]["train/total_loss_tokens"] if metrics else 0,
        "seconds": sum(record["values"]["time/step_seconds"] for record in metrics),
    }


def _scores(summaries: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, list[list[float]]]:
    by_label = [{item["label"]: item for item in summary["sets"]} for summary in summaries]
    for label in labels:
        if any(row[label]["score"] is None for row in by_label):
            raise RunDirectoryError(
                f"{label!r} has no score: its task has no check. Fix: a task that tells right from wrong answers, or "
                "leave it out."
            )
    keys = {"value": "score", "low": "low", "high": "high"}
    return {name: [[row[label][key] for label in labels] for row in by_label] for name, key in keys.items()}


def _metrics(correct: list[Array], retained: list[Array], names: Sequence[str]) -> dict[str, dict[str, float]]:
    scores = matrix(correct)
    held = matrix(retained) if retained else np.zeros((scores.shape[0], 0))
    found = {}
    for name in names:
        if name == "retention_change" and not retained:
            continue
        statistic = METRICS[name]
        low, high = paired_interval(correct, retained, statistic)
        found[name] = {"value": float(statistic(scores, held)), "low": low, "high": high}
    return found


def _forgetting(correct: list[Array], retained: list[Array], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    if len(labels) < 2:
        return {}
    values = forgetting_by_task(matrix(correct))
    found = {}
    for index, label in enumerate(labels[:-1]):
        low, high = paired_interval(correct, retained, _forgetting_of(index))
        found[label] = {"value": float(values[index]), "low": low, "high": high}
    return found


def _forgetting_of(index: int) -> Statistic:
    return lambda scores, retained: np.asarray(forgetting_by_task(scores)[index])


def _relative(path: Path, output: Path) -> str:
    return str(path.resolve().relative_to(output.resolve()))
