"""What a comparison found: metrics over seeds with intervals, differences, and tests on the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.experiments.metrics import METRICS, Array, Statistic, intransigence, matrix, mcnemar, paired_interval
from onpolicy_sdft.experiments.sequence_results import read_answers, rows_of
from onpolicy_sdft.runs.files import read_json

Entry = dict[str, Any]


def summarise(
    output: Path,
    match: str,
    seeds: Sequence[int],
    methods: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    tuning: Sequence[Mapping[str, Any]],
) -> Entry:
    """Return what ``comparison.json`` says of the sequences that are done.

    Args:
        output: The comparison's directory.
        match: What is equal between methods.
        seeds: Of the comparison.
        methods: Their names, in order.
        rows: The sequences that were run.
        tuning: The learning rates that were tried.
    """
    whole = [_row(output, row) for row in rows]
    done = [row for row in whole if not row["stopped"] and not row["joint"]]
    by_method = {method: [row for row in done if row["method"] == method] for method in methods}
    answers = _Answers(output)
    records = {method: _records(answers, output, mine) for method, mine in by_method.items() if mine}
    labels: list[str] = next((row["labels"] for row in done), [])
    return {
        "methods": list(methods),
        "seeds": list(seeds),
        "match": match,
        "labels": labels,
        "rows": whole,
        "over_seeds": {method: _over_seeds(by_method[method], each) for method, each in records.items()},
        "differences": _differences(records),
        "intransigence": _intransigence(whole, by_method),
        "tuning": list(tuning),
        "mcnemar": _tests(answers, done, labels),
    }


def _row(output: Path, row: Mapping[str, Any]) -> Entry:
    if row["stopped"]:
        return {**row, "metrics": {}, "kl": None, "loss_tokens": None, "steps": None, "seconds": None, "labels": []}
    found = read_json(output / row["sequence"] / "sequence.json")
    kl = found["kl"][-1]
    return {
        **row,
        "labels": found["labels"],
        "metrics": found["metrics"],
        "kl": None if kl is None else kl["mean"],
        "ended_by": [stage["ended_by"] for stage in found["stages"]],
        "matrix": found["matrix"]["value"],
        "last_scores": found["matrix"]["value"][-1],
        **{name: sum(stage[name] for stage in found["stages"]) for name in ("loss_tokens", "steps", "seconds")},
    }


class _Answers:
    """Reads each sequence's answers once, and makes sure that all were asked the same questions."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self._asked: dict[str, list[str]] = {}
        self._found: dict[tuple[str, str], Array] = {}

    def of(self, sequence: str, label: str) -> Array:
        """Return the share of right samples of every question after every stage: [T + 1, E].

        Raises:
            RunDirectoryError: If another sequence was asked other questions.
        """
        if (sequence, label) not in self._found:
            self._found[sequence, label], asked = read_answers(rows_of(self.output / sequence), label)
            if self._asked.setdefault(label, asked) != asked:
                raise RunDirectoryError(
                    f"{self.output / sequence} was asked other questions of {label!r} than the sequences before it. "
                    "Fix: delete it and start the same command again, or take another output_dir."
                )
        return self._found[sequence, label]


def _records(answers: _Answers, output: Path, mine: Sequence[Mapping[str, Any]]) -> tuple[list[Array], list[Array]]:
    """Return the records of a method over its seeds, of tasks and of sets never trained: [T + 1, S, E] each."""
    found = [read_json(output / row["sequence"] / "sequence.json") for row in mine]
    tasks, held = found[0]["labels"], found[0]["retention_labels"]
    stacked = {
        label: np.stack([answers.of(row["sequence"], label) for row in mine], axis=1) for label in (*tasks, *held)
    }
    return [stacked[label] for label in tasks], [stacked[label] for label in held]


def _over_seeds(mine: Sequence[Mapping[str, Any]], records: tuple[list[Array], list[Array]]) -> Entry:
    """Return each metric's mean over seeds, with the interval over examples of that mean, and its values."""
    correct, retained = records
    found: Entry = {}
    for name, statistic in METRICS.items():
        if name not in mine[0]["metrics"]:
            continue
        low, high = paired_interval(correct, retained, _mean_of(statistic))
        values = [row["metrics"][name]["value"] for row in mine]
        found[name] = {"mean": float(np.mean(values)), "low": low, "high": high, "n": len(values), "values": values}
    distances = [row["kl"] for row in mine if row["kl"] is not None]
    if distances:
        # Over seeds there is no interval over examples here: the range of the seeds.
        found["kl"] = {
            "mean": float(np.mean(distances)), "low": min(distances), "high": max(distances), "n": len(distances),
            "values": distances,
        }  # fmt: skip
    return found


def _mean_of(statistic: Statistic) -> Statistic:
    """Return the mean over seeds, the first axis that is left."""
    return lambda scores, retained: np.asarray(statistic(scores, retained).mean(axis=0))


def _differences(records: Mapping[str, tuple[list[Array], list[Array]]]) -> list[Entry]:
    """Return the difference of each metric between two methods, with its paired interval over examples."""
    found = []
    for a, b in combinations(records, 2):
        pairs = [
            [np.concatenate([mine, other], axis=1) for mine, other in zip(records[a][k], records[b][k], strict=True)]
            for k in (0, 1)
        ]
        num_a = records[a][0][0].shape[1]
        for name, statistic in METRICS.items():
            if name == "retention_change" and not pairs[1]:
                continue
            difference = _difference_of(statistic, num_a)
            scores = matrix(pairs[0])
            held = matrix(pairs[1]) if pairs[1] else np.zeros((scores.shape[0], 0, scores.shape[2]))
            low, high = paired_interval(pairs[0], pairs[1], difference)
            found.append(
                {"a": a, "b": b, "metric": name, "value": float(difference(scores, held)), "low": low, "high": high}
            )
    return found


def _difference_of(statistic: Statistic, num_a: int) -> Statistic:
    def difference(scores: Array, retained: Array) -> Array:
        values = statistic(scores, retained)
        return np.asarray(values[:num_a].mean(axis=0) - values[num_a:].mean(axis=0))

    return difference


def _intransigence(rows: Sequence[Mapping[str, Any]], by_method: Mapping[str, Sequence[Mapping[str, Any]]]) -> Entry:
    """Return how far each method's tasks stay behind joint training by the same method, where there is one."""
    found = {}
    for row in rows:
        if row["joint"] and not row["stopped"]:
            behind = [
                float(intransigence(np.asarray(each["matrix"]), np.asarray(row["last_scores"])))
                for each in by_method[row["method"]]
            ]
            found[row["method"]] = {"ceiling": row["last_scores"], "values": behind}
    return found


def _tests(answers: _Answers, done: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[Entry]:
    """Compare methods after the last stage on each task's questions, seed by seed: questions repeat between seeds."""
    last = {
        (row["method"], row["seed"], label): answers.of(row["sequence"], label)[-1] for row in done for label in labels
    }
    found = []
    for first, second in combinations(done, 2):
        if first["seed"] != second["seed"]:
            continue
        for label in labels:
            a, b = (last[row["method"], row["seed"], label] for row in (first, second))
            if set(a) | set(b) <= {0.0, 1.0}:  # one answer a question
                outcome = mcnemar(list(a > 0), list(b > 0))
                found.append(
                    {"a": first["method"], "b": second["method"], "seed": first["seed"], "label": label, **outcome}
                )
    return found
