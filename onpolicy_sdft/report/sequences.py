"""The report of a sequence of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onpolicy_sdft.report.document import (
    Block,
    Column,
    Part,
    Picture,
    Table,
    count,
    estimate,
    interval,
    make_table,
    plain,
)
from onpolicy_sdft.report.drawing import png_bytes
from onpolicy_sdft.report.origins import origin_blocks, origin_of_object, start_of
from onpolicy_sdft.report.reading import Member, Reader
from onpolicy_sdft.report.runs import add_overlays, add_training, tracks_of
from onpolicy_sdft.report.sequence_plots import cell, draw_forgetting, draw_matrix, draw_stages, stage_names

#: What each figure means; A[i, j] is the score on task j after i stages, row 0 the base model.
METRICS: Mapping[str, str] = {
    "average_accuracy": "mean over the tasks of the last score",
    "acquisition": "mean over the tasks of the gain in the task's own stage, A[j, j] - A[j - 1, j]",
    "forgetting": "mean over the earlier tasks of the best score after stages 1 to T - 1, minus the last",
    "backward_transfer": "mean over the earlier tasks of the last score minus that after the task's own stage",
    "forward_transfer": "mean over the later tasks of the score before the task's own stage minus the base model's",
    "retention_change": "mean over the sets never trained of the last score minus the base model's",
}


def sequence_part(path: Path, name: str, reader: Reader) -> Part:
    """Report a sequence.

    Args:
        path: Its directory.
        name: What to call it.
        reader: Reads and names its files.

    Returns:
        Its part of the report.
    """
    part = Part(name, "sequence")
    source = reader.name(path / "sequence.json")
    sequence = reader.object_or_name(path / "sequence.json", "the sequence", part.missing)
    origin = origin_of_object(name, sequence, source)
    part.subtitle = start_of(origin.manifest)
    what = part.attempt(source, "what was run", partial(origin_blocks, [origin]))
    part.add("What was run", part.attempt(source, "the stages", partial(_stages, sequence, source)), what)
    for title, make in (("Accuracy", matrix_blocks), ("Learning and forgetting", _figures)):
        part.add(title, part.attempt(source, title.lower(), partial(make, sequence, source)), is_summary=True)
    members = stage_members(path, sequence, reader, part)
    add_overlays(part, tracks_of(members, reader))
    add_training(part, members, reader)
    return part


def stage_members(
    path: Path, sequence: Mapping[str, Any], reader: Reader, part: Part, prefix: str = ""
) -> list[Member]:
    """Return the runs of a sequence's stages; what they lack is named.

    Args:
        path: Directory of the sequence.
        sequence: Its ``sequence.json``.
        reader: Reads and names files.
        part: Takes the names of what is missing.
        prefix: Before the stages' names, e.g. the sequence's.
    """
    stages = sequence.get("stages")
    members = []
    for stage in stages if isinstance(stages, list) else []:
        if not isinstance(stage, Mapping) or not isinstance(stage.get("run"), str):
            part.missing.append(f"{reader.name(path / 'sequence.json')}: the run of a stage")
            continue
        place = path / stage["run"]
        member = reader.member(place, prefix + str(stage.get("label", stage["run"])))
        # Scores of a stage stand in the sequence's matrix, so a stage need not have its own.
        lacks = [line for line in member.records.missing if not line.startswith("eval/")]
        part.missing += [f"{reader.name(place)}/{line}" for line in lacks]
        members.append(member)
    return members


def matrix_blocks(sequence: Mapping[str, Any], source: str, name: str = "") -> list[Block | None]:
    """Show the accuracy matrix as a heat map and as a table.

    Args:
        sequence: ``sequence.json``.
        source: That file.
        name: Of the sequence, where there are several.
    """
    records = sequence.get("records") or {}
    folder = source.rpartition("/")[0]
    per_example = [f"{folder}/{file}".lstrip("/") for files in records.values() for file in files if file]
    sources = tuple(dict.fromkeys([source, *per_example]))
    figure = draw_matrix(sequence)
    title = "Accuracy matrix" + (f" of {name}" if name else "")
    caption = "Score on each set (columns) after each stage (rows), 95 % interval; framed: the task the stage trained."
    table = _matrix_table(sequence, sources, title, name)
    if figure is None:
        return [table]
    return [Picture(_slug("accuracy", name), title, caption, png_bytes(figure), sources), table]


def _matrix_table(sequence: Mapping[str, Any], sources: Sequence[str], title: str, name: str) -> Table | None:
    blocks = [("matrix", label, column) for column, label in enumerate(sequence["labels"])]
    blocks += [("retention", label, column) for column, label in enumerate(sequence.get("retention_labels") or [])]
    shifts = sequence.get("kl") or []
    rows = []
    for number in range(len(sequence["matrix"]["value"])):
        row: dict[str, Any] = {"stage": stage_names(sequence)[number]}
        row |= {f"{kind}/{label}": cell(sequence[kind], number, column) for kind, label, column in blocks}
        shift = shifts[number] if number < len(shifts) else None
        row["kl"] = {key: value for key, value in shift.items() if key != "sums"} if shift else None
        rows.append(row)
    sizes = sequence.get("n") or {}
    columns = [Column("stage", "stage", plain)]
    for kind, label, _ in blocks:
        size = f", n = {sizes[label]}" if label in sizes else ""
        heading = f"{label}\n({'task' if kind == 'matrix' else 'never trained'}{size})"
        columns.append(Column(f"{kind}/{label}", heading, estimate))
    if any(row["kl"] for row in rows):
        columns.append(Column("kl", "KL(base || tuned)\nnats a token", _kl))
    return make_table(_slug("accuracy", name).replace("-", "_"), title, columns, rows, sources)


def _stages(sequence: Mapping[str, Any], source: str) -> list[Block | None]:
    columns = [
        Column("label", "stage", plain),
        Column("run", "run", plain),
        Column("steps", "steps", count),
        Column("loss_tokens", "loss tokens", count),
        Column("seconds", "seconds", count),
    ]
    return [make_table("stages", "Stages", columns, sequence["stages"], [source])]


def _figures(sequence: Mapping[str, Any], source: str) -> list[Block | None]:
    metrics, by_task = sequence.get("metrics") or {}, sequence.get("forgetting_by_task") or {}
    rows = [{"metric": name, **metrics[name], "figure": metrics[name]} for name in ordered(metrics)]
    rows = [{**row, "meaning": METRICS.get(row["metric"])} for row in rows]
    columns = [
        Column("metric", "metric", lambda name: str(name).replace("_", " ")),
        Column("figure", "value [95 %]", estimate),
        Column("meaning", "meaning", plain),
    ]
    lost = [{"task": label, **each, "figure": each} for label, each in by_task.items()]
    lost_columns = [Column("task", "task", plain), Column("figure", "forgetting [95 %]", estimate)]
    blocks: list[Block | None] = [
        make_table("metrics", "Learning and forgetting", columns, rows, [source]),
        make_table("forgetting_by_task", "Forgetting by task", lost_columns, lost, [source]),
    ]
    figure = draw_forgetting(by_task)
    if figure is not None:
        caption = "Above zero: lost since the best earlier stage. Below: still gaining."
        blocks.append(Picture("forgetting", "Forgetting by task", caption, png_bytes(figure), (source,)))
    caption = "Dashed: sets never trained."
    stages = png_bytes(draw_stages(sequence))
    return [*blocks, Picture("stages", "Score over the stages", caption, stages, (source,))]


def ordered(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of metrics, the known ones first."""
    return [*(name for name in METRICS if name in metrics), *(name for name in metrics if name not in METRICS)]


def _kl(kl: Mapping[str, Any]) -> str:
    return interval(kl.get("mean"), kl.get("low"), kl.get("high"), digits=4)


def _slug(kind: str, name: str) -> str:
    return f"{kind}-{name.replace('/', '-')}" if name else kind
