"""How the model that a run leaves compares with the one it started from: said last, and in its card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.runs.files import read_json, read_jsonl
from onpolicy_sdft.train.gate import Drop, compare, list_drops, worse_of

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import GateConfig
    from onpolicy_sdft.runs.directory import RunDirectory
    from onpolicy_sdft.train.gate import Gate


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """What is said last of a run."""

    text: str
    is_worse: bool  # than the start on some set, by more than is allowed and not by chance
    is_start: bool  # the gate stopped the run and found nothing better than the start


def reach_verdict(run: RunDirectory, gate: Gate | None, config: GateConfig, summary: Mapping[str, Any]) -> RunVerdict:
    """Compare the model that is left with the start, on every set that both have answered, row by row.

    What is worse is decided as the gate does, of its sets and of those of the evaluation, each among their number.

    Args:
        run: Holds the answers before and after.
        gate: Its checks.
        config: ``gate`` of the run.
        summary: Stage ``after`` of the evaluation, if there was one.
    """
    stopped = gate is not None and gate.stopped
    is_start = stopped and gate is not None and gate.best_step == 0
    looks = (_of_gate(gate), _of_evaluation(run, summary))
    drops = {label: drop for look in looks for label, drop in look.items()}
    worse = {label: drop for look in looks for label, drop in worse_of(look, config).items()}
    lower = {label: drop for label, drop in drops.items() if drop.size > 0 and label not in worse}
    parts = []
    if is_start:
        parts.append("the gate stopped training, and the model IS THE START: nothing better was seen")
    elif stopped and gate is not None:
        parts.append(f"the gate stopped training, and the model is that of step {gate.best_step}")
    if worse:
        parts.append(f"WORSE THAN THE START on {list_drops(worse)}")
    if lower:
        parts.append(
            f"lower than at the start, by no more than gate.max_drop={config.max_drop:g} or perhaps by chance, on "
            f"{list_drops(lower)}"
        )
    if drops and not (worse or lower or is_start):
        parts.append(f"not worse than the start on {list_drops(drops)}")
    unchecked = [entry["label"] for entry in _sets(summary) if entry["score"] is None]
    if not drops and unchecked:
        parts.append(f"not compared with the start: the task of {', '.join(unchecked)} has no check")
    elif not drops:
        parts.append("not compared with the start: no rows were answered before and after")
    return RunVerdict("; ".join(parts), bool(worse), is_start)


def _of_gate(gate: Gate | None) -> dict[str, Drop]:
    if gate is None or not gate.history:
        return {}
    start, left = gate.history[0], gate.best if gate.stopped else gate.history[-1]
    return {f"{label} (gate)": compare(start.correct[label], rows) for label, rows in left.correct.items()}


def _of_evaluation(run: RunDirectory, summary: Mapping[str, Any]) -> dict[str, Drop]:
    if not summary.get("after") or not read_json(run.eval_summary_path).get("before"):
        return {}
    found = {}
    for label in (entry["label"] for entry in _sets(summary) if entry["score"] is not None):
        before, after = (_shares(run, stage, label) for stage in ("before", "after"))
        if before.keys() == after.keys():
            found[label] = compare(list(before.values()), [after[example] for example in before])
    return found


def _sets(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list((summary.get("after") or {}).get("sets", []))


def _shares(run: RunDirectory, stage: str, label: str) -> dict[str, float]:
    """Return the share of right samples of every question."""
    samples: dict[str, list[bool]] = {}
    path = run.eval_records_path(stage, label)
    for record in read_jsonl(path) if path.is_file() else []:
        samples.setdefault(record["example_id"], []).append(bool(record["correct"]))
    return {example: fmean(each) for example, each in samples.items()}
