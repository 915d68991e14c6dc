"""Run directories to rows, rows to one table: mean, spread and number of runs of each point."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onpolicy_sdft.config.scores import label_of, score_metric
from onpolicy_sdft.config.sweep import canonical, shown_value
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json, write_json_atomic, write_text_atomic

if TYPE_CHECKING:
    from onpolicy_sdft.config.sweep import SweepConfig
    from onpolicy_sdft.experiments.sweep_plan import Plan


SWEEP_FILE = "sweep.json"
TABLE_FILE = "table.csv"

State = Literal["done", "failed", "stopped", "pending"]


@dataclass(slots=True)
class Row:
    """One run and what became of it."""

    name: str
    run: str  # its directory, from the sweep's
    point: dict[str, Any]
    seed: int
    state: State = "pending"
    reason: str = ""  # why it failed or stopped
    seconds: float = 0.0  # wall time, over all attempts
    scores: dict[str, float] = field(default_factory=dict)


def start_rows(plan: Plan, directory: Path) -> list[Row]:
    """Return a row for each run, with what an earlier call found: failed runs keep their reason."""
    path = directory / SWEEP_FILE
    saved = {row["name"]: row for row in read_json(path)["runs"]} if path.is_file() else {}
    rows = []
    for run in plan.runs:
        old = saved.get(run.name, {})
        row = Row(run.name, f"runs/{run.name}", run.point.values, run.seed, seconds=float(old.get("seconds", 0.0)))
        if old.get("state") in ("failed", "stopped"):
            row.state, row.reason = old["state"], old["reason"]
        rows.append(row)
    return rows


def read_scores(path: Path, metrics: Sequence[str] = ()) -> dict[str, float]:
    """Read the scores of a finished run.

    Args:
        path: The run directory.
        metrics: Names of ``metrics.jsonl`` to average over the steps, besides what every run has.

    Returns:
        Metric by name; what the run has not is left out.
    """
    run = RunDirectory(path)
    summary = read_json(run.eval_summary_path) if run.eval_summary_path.is_file() else {}
    after = summary.get("after") or {}
    scores = {score_metric(item["label"]): item["score"] for item in after.get("sets", []) if item["score"] is not None}
    kl = after.get("kl") or {}
    scores |= {name: kl[key] for name, key in (("eval/kl", "mean"), ("eval/nll", "nll_mean")) if key in kl}
    steps = [record["values"] for record in run.read_metrics()]
    scores["train/steps"] = len(steps)
    if steps:
        scores["train/total_loss_tokens"] = steps[-1]["train/total_loss_tokens"]
        scores["train/seconds"] = sum(values["time/step_seconds"] for values in steps)
    for name in metrics:
        found = [values[name] for values in steps if values.get(name) is not None]
        if name not in scores and found:
            scores[name] = sum(found) / len(found)
    return {name: float(value) for name, value in scores.items() if value is not None}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Describe a metric over runs.

    Args:
        values: One a run, at least one.

    Returns:
        ``mean``, ``low`` (the smallest), ``high`` (the largest), ``sd`` (of a sample; None for one run), ``n`` and the
        ``values`` themselves.
    """
    sd = statistics.stdev(values) if len(values) > 1 else None
    mean = statistics.fmean(values)
    return {"mean": mean, "low": min(values), "high": max(values), "sd": sd, "n": len(values), "values": list(values)}


def tabulate(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Put the runs of each point together.

    Returns:
        ``{"point", "scores": {metric: spread}, "num_failed"}`` a point, in the order of the runs. Runs that failed or
        are not done yet have no part in the figures.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(canonical(row.point), []).append(row)
    table = []
    for group in groups.values():
        done = [row.scores for row in group if row.state == "done"]
        names = dict.fromkeys(name for scores in done for name in scores)
        figures = {name: spread([scores[name] for scores in done if name in scores]) for name in names}
        num_failed = sum(row.state == "failed" for row in group)
        table.append({"point": group[0].point, "scores": figures, "num_failed": num_failed})
    return table


def base_model_scores(rows: Sequence[Row], directory: Path) -> dict[str, float]:
    """Return the scores of the model before training, where all runs that are done agree on them."""
    found: dict[str, set[float]] = {}
    for row in rows:
        path = RunDirectory(directory / row.run).eval_summary_path
        if row.state == "done" and path.is_file():
            for item in (read_json(path).get("before") or {}).get("sets", []):
                if item["score"] is None:
                    continue
                found.setdefault(score_metric(item["label"]), set()).add(item["score"])
    return {name: values.pop() for name, values in found.items() if len(values) == 1}


def shown_metrics(wanted: Sequence[str], table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of the table: those asked for, or all scores, the KL and the steps."""
    if wanted:
        return list(wanted)
    names = dict.fromkeys(name for row in table for name in row["scores"])
    return [name for name in names if name.startswith("eval/") and name != "eval/nll"] + ["train/steps"]


def write_results(config: SweepConfig, plan: Plan, rows: Sequence[Row], directory: Path) -> list[dict[str, Any]]:
    """Write ``sweep.json`` and ``table.csv``; return the table."""
    table = tabulate(rows)
    metrics = shown_metrics(config.metrics, table)
    record = {
        "axes": {axis: [shown_value(axis, value) for value in values] for axis, values in config.axes.items()},
        "seeds": config.seeds,
        "metrics": metrics,
        "runs": [asdict(row) for row in rows],
        "table": table,
        "base_model": base_model_scores(rows, directory),
        "one_distilled_set": any(run.distilled for run in plan.runs),
        "excluded": [asdict(entry) for entry in plan.excluded],
    }
    write_json_atomic(directory / SWEEP_FILE, record)
    write_text_atomic(directory / TABLE_FILE, to_csv(table, list(config.axes), metrics))
    return table


def to_csv(table: Sequence[Mapping[str, Any]], axes: Sequence[str], metrics: Sequence[str]) -> str:
    """Write the table as CSV: a row a point; mean, sd, smallest, largest and number of runs of each metric."""
    parts = ("mean", "sd", "low", "high", "n")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*axes, *(f"{name} {part}" for name in metrics for part in parts), "failed"])
    for row in table:
        figures = [row["scores"].get(name, {}).get(part) for name in metrics for part in parts]
        writer.writerow([*(plain_text(row["point"][axis]) for axis in axes), *figures, row["num_failed"]])
    return out.getvalue()


def plain_text(value: Any) -> str:
    """Return an axis value as people write it in YAML."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value)


def short_name(metric: str) -> str:
    """Return a metric as a heading: of a score the label of its set."""
    return label_of(metric) or metric
