"""Run sequences and comparisons from the terminal, and their tables there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onpolicy_sdft.experiments.sequence import Interrupted
from onpolicy_sdft.report.document import estimate, interval
from onpolicy_sdft.runs.files import read_json
from onpolicy_sdft.runs.plain_table import format_plain_table


def run_and_show(work: Callable[[], Path], tables: Callable[[Mapping[str, Any]], str]) -> int:
    """Run something made of many runs, print its tables and leave a report.

    Args:
        work: Runs what is left of it; returns its summary, in its directory.
        tables: Makes the tables of the summary.

    Returns:
        The exit code: that of the signal, if one ended it.
    """
    try:
        summary = work()
    except Interrupted as stop:
        print(f"{stop}; the state is saved. Go on with the same command.", file=sys.stderr)
        return stop.exit_code
    print(tables(read_json(summary)))
    from onpolicy_sdft.report.write import write_report  # matplotlib: after the last run, not before the first

    for path in (*write_report([summary.parent]), summary):
        print(path)
    return 0


def sequence_tables(summary: Mapping[str, Any]) -> str:
    """Return the accuracy matrix of a sequence, a row a stage, and its metrics."""
    labels = [*summary["labels"], *summary["retention_labels"]]
    names = ["base model", *(f"after {stage['label']}" for stage in summary["stages"])]
    rows = []
    for index, name in enumerate(names):
        cells = [
            interval(*(part[bound][index][k] for bound in ("value", "low", "high")))
            for part in (summary["matrix"], summary["retention"])
            for k in range(len(part["value"][index]))
        ]
        kl = summary["kl"][index]
        rows.append((name, *cells, "-" if kl is None else f"{kl['mean']:.4f}"))
    sizes = [f"{label} (n = {summary['n'][label]})" for label in labels]
    parts = [format_plain_table(("accuracy", *sizes, "KL(base || tuned)"), rows)]
    if summary["metrics"]:
        found = [(name, estimate(entry)) for name, entry in summary["metrics"].items()]
        found += [(f"forgetting of {name}", estimate(entry)) for name, entry in summary["forgetting_by_task"].items()]
        parts.append(format_plain_table(("metric", "value [95 %]"), found))
    return "\n\n".join(parts)


def comparison_tables(summary: Mapping[str, Any]) -> str:
    """Return methods by metrics over seeds, what was tuned, and where methods differ on the same questions."""
    names = list(dict.fromkeys(name for each in summary["over_seeds"].values() for name in each))
    rows = [
        (method, str(next(iter(each.values()))["n"]), *(_mean(each[name]) for name in names))
        for method, each in summary["over_seeds"].items()
    ]
    parts = [format_plain_table(("method", "seeds", *(name.replace("_", " ") for name in names)), rows)]
    is_matched = summary["match"] == "acquisition"
    short = [
        f"{row['sequence']}: stage {number} ended by {why}, not at its target score"
        for row in summary["rows"]
        for number, why in enumerate(row.get("ended_by") or [], start=1)
        if is_matched and why != "stop_score"
    ]
    runs = [
        (
            row["method"] + (" (joint)" if row["joint"] else ""), str(row["seed"]),
            "-" if row["lr"] is None else f"{row['lr']:g}", str(row["steps"] or "-"), str(row["loss_tokens"] or "-"),
            "-" if row["kl"] is None else f"{row['kl']:.4f}", row["stopped"] or row["sequence"],
        )
        for row in summary["rows"]
    ]  # fmt: skip
    parts.append(format_plain_table(("method", "seed", "lr", "steps", "learned tokens", "KL", "sequence"), runs))
    if summary["tuning"]:
        tried = [
            (row["method"], f"{row['lr']:g}", "stopped" if row["score"] is None else f"{row['score']:.3f}",
             "chosen" if row["chosen"] else "")
            for row in summary["tuning"]
        ]  # fmt: skip
        parts.append(format_plain_table(("method", "lr", "validation score", ""), tried))
    if summary["differences"]:
        found = [(f"{row['a']} - {row['b']}", row["metric"], estimate(row)) for row in summary["differences"]]
        parts.append(format_plain_table(("methods", "metric", "difference [95 %]"), found))
    if summary["mcnemar"]:
        tests = [
            (f"{t['a']} / {t['b']}", str(t["seed"]), t["label"], str(t["only_a"]), str(t["only_b"]), f"{t['p']:.3f}")
            for t in summary["mcnemar"]
        ]
        parts.append(format_plain_table(("methods", "seed", "task", "only first", "only second", "McNemar p"), tests))
    notes = "Intervals: 95 % bootstrap over questions, paired, of the mean over seeds; of KL the range of the seeds."
    return "\n\n".join([*parts, "\n".join([*short, notes])])


def _mean(entry: Mapping[str, float]) -> str:
    return interval(entry["mean"], entry["low"], entry["high"])
