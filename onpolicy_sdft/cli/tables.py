"""Tables of sequences and comparisons for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onpolicy_sdft.runs.plain_table import format_plain_table


def sequence_tables(summary: Mapping[str, Any]) -> str:
    """Return the accuracy matrix of a sequence, a row a stage, and its metrics."""
    labels = [*summary["labels"], *summary["retention_labels"]]
    names = ["seed model", *(f"after {stage['label']}" for stage in summary["stages"])]
    rows = []
    for index, name in enumerate(names):
        cells = [
            f"{part['value'][index][k]:.3f} [{part['low'][index][k]:.3f}, {part['high'][index][k]:.3f}]"
            for part in (summary["matrix"], summary["retention"])
            for k in range(len(part["value"][index]))
        ]
        kl = summary["kl"][index]
        rows.append((name, *cells, "-" if kl is None else f"{kl['mean']:.4f}"))
    sizes = [f"{label} (n = {summary['n'][label]})" for label in labels]
    parts = [format_plain_table(("accuracy", *sizes, "KL(seed || tuned)"), rows)]
    if summary["metrics"]:
        found = [(name, interval(entry)) for name, entry in summary["metrics"].items()]
        found += [(f"forgetting of {name}", interval(entry)) for name, entry in summary["forgetting_by_task"].items()]
        parts.append(format_plain_table(("metric", "value [95 %]"), found))
    return "\n\n".join(parts)


def comparison_tables(summary: Mapping[str, Any]) -> str:
    """Return methods by metrics over seeds, what was tuned, and where methods differ on the same questions."""
    names = list(dict.fromkeys(name for each in summary["over_seeds"].values() for name in each))
    rows = [
        (method, str(next(iter(each.values()))["n"]), *(interval(each[name], "mean") for name in names))
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
        found = [(f"{row['a']} - {row['b']}", row["metric"], interval(row)) for row in summary["differences"]]
        parts.append(format_plain_table(("methods", "metric", "difference [95 %]"), found))
    if summary["mcnemar"]:
        tests = [
            (f"{t['a']} / {t['b']}", str(t["seed"]), t["label"], str(t["only_a"]), str(t["only_b"]), f"{t['p']:.3f}")
            for t in summary["mcnemar"]
        ]
        parts.append(format_plain_table(("methods", "seed", "task", "only first", "only second", "McNemar p"), tests))
    notes = "Intervals: 95 % bootstrap over questions, paired, of the mean over seeds; of KL the range of the seeds."
    return "\n\n".join([*parts, "\n".join([*short, notes])])


def interval(entry: Mapping[str, float], middle: str = "value") -> str:
    """Show a figure with its interval."""
    return f"{entry[middle]:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
