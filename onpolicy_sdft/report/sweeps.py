"""The report of a sweep over options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onpolicy_sdft.experiments.sweep_results import plain_text, short_name
from onpolicy_sdft.report.charts import MAX_TRACKS, Track
from onpolicy_sdft.report.document import Block, Column, Part, Picture, Sentence, count, make_table, plain, used
from onpolicy_sdft.report.drawing import png_bytes
from onpolicy_sdft.report.reading import Member, Reader
from onpolicy_sdft.report.runs import add_origins, add_overlays, add_training
from onpolicy_sdft.report.sweep_plots import MAX_GROUPS, draw_axis

_NUM_PANELS = 6  # plots in one picture


def sweep_part(path: Path, name: str, reader: Reader) -> Part:
    """Report a sweep.

    Args:
        path: Its directory.
        name: What to call it.
        reader: Reads and names its files.

    Returns:
        Its part of the report.
    """
    part = Part(name, "sweep")
    source = reader.name(path / "sweep.json")
    sweep = reader.object_or_name(path / "sweep.json", "the sweep", part.missing)
    members = part_members(path, sweep, reader, part, source)
    part.add("What was tried", part.attempt(source, "what was tried", partial(_design, sweep, source)))
    part.add("Results", part.attempt(source, "the results", partial(_results, sweep, source)), is_summary=True)
    part.add("Along each axis", part.attempt(source, "plots", partial(_pictures, sweep, source)))
    part.add("Not done", part.attempt(source, "what was not done", partial(_not_done, sweep, source)), is_summary=True)
    part.add("Runs", part.attempt(source, "the runs", partial(_runs, sweep, source)))
    if members:
        add_origins(part, [member for member, _ in members], reader)
        points = {label for _, label in members}
        if len(points) <= MAX_TRACKS:
            tracks = [Track(label, m.records.metrics, reader.sources([m], "metrics.jsonl")) for m, label in members]
            add_overlays(part, tracks)
        else:
            part.missing.append(f"curves: {len(points)} points are too many for one picture; name a few of the runs")
        add_training(part, [member for member, _ in members], reader)
    return part


def part_members(
    path: Path, sweep: Mapping[str, Any], reader: Reader, part: Part, source: str
) -> list[tuple[Member, str]]:
    """Return the runs that have begun, each with its point as text; what they lack is named."""
    found = []
    runs = sweep.get("runs")
    for row in runs if isinstance(runs, list) else []:
        if not isinstance(row, Mapping) or not isinstance(row.get("run"), str):
            part.missing.append(f"{source}: the directory of a run")
            continue
        place, state = path / row["run"], row.get("state")
        if state == "done" or (place / "metrics.jsonl").exists():
            member = reader.member(place, str(row.get("name", row["run"])))
            if state == "done":  # of the others the reason stands in a table
                part.missing += [f"{reader.name(place)}/{line}" for line in member.records.missing]
            point = row.get("point")
            label = _point_text(point) if isinstance(point, Mapping) else member.name
            found.append((member, label or member.name))
    return found


def _design(sweep: Mapping[str, Any], source: str) -> list[Block | None]:
    rows = [{"axis": axis, "values": values} for axis, values in sweep["axes"].items()]
    columns = [Column("axis", "axis", plain), Column("values", "values", _listed)]
    states: dict[str, int] = {}
    for row in sweep.get("runs") or []:
        states[row["state"]] = states.get(row["state"], 0) + 1
    seeds = sweep.get("seeds") or []
    counts = ", ".join(f"{number} {state}" for state, number in states.items())
    text = f"{sum(states.values())} runs ({counts}), seeds {', '.join(map(str, seeds))}."
    return [
        make_table("axes", "Axes", columns, rows, [source]),
        Sentence("runs", text, {"states": states, "seeds": seeds}, (source,)),
    ]


def _results(sweep: Mapping[str, Any], source: str) -> list[Block | None]:
    metrics = _metrics(sweep)
    rows = [
        {**row, **{f"point/{f}": v for f, v in row["point"].items()}, **_figures(row), "num_runs": _num_runs(row)}
        for row in sweep["table"]
    ]
    columns = [Column(f"point/{axis}", axis, plain_text) for axis in sweep["axes"]]
    columns += [Column(f"figure/{name}", short_name(name), plain) for name in metrics]
    columns += [Column("num_runs", "runs", count), Column("num_failed", "failed", count)]
    before = sweep.get("base_model") or {}
    known = [f"{short_name(name)} {_number(name, before[name])}" for name in metrics if name in before]
    notes = [f"Before training: {', '.join(known)}."] if known else []
    if sweep.get("one_distilled_set"):
        notes.append("Runs of all seeds learn the same distilled set: the chance in writing it is not in their spread.")
    lacking = [name for name in sweep.get("metrics") or () if name not in metrics]
    if lacking and metrics:
        notes.append(f"No run has {', '.join(lacking)}.")
    caption = "Mean ± standard deviation over runs (smallest to largest); a run is one seed."
    return [make_table("points", "Points", columns, rows, [source], caption=caption, notes=notes)]


def _pictures(sweep: Mapping[str, Any], source: str) -> list[Block | None]:
    axes, metrics = (
        sweep["axes"],
        [name for name in _metrics(sweep) if any(name in row["scores"] for row in sweep["table"])],
    )
    blocks: list[Block | None] = []
    for field, values in axes.items():
        if len(values) < 2 or not metrics:
            continue
        others = 1
        for other in axes:
            others *= 1 if other == field else len(axes[other])
        caption = "Dots: runs; line or bar: their mean; shade or rule: their range."
        if 1 < others <= MAX_GROUPS:
            caption += " Colours: the other axes."
        elif others > MAX_GROUPS:
            caption += f" Over all {others} combinations of the other axes."
        for start in range(0, len(metrics), _NUM_PANELS):
            some = metrics[start : start + _NUM_PANELS]
            name = f"axis-{field}" + (f"-{start // _NUM_PANELS + 1}" if len(metrics) > _NUM_PANELS else "")
            png = png_bytes(draw_axis(field, axes, sweep["table"], some))
            blocks.append(Picture(name, f"Along {field}", caption, png, (source,)))
    return blocks


def _not_done(sweep: Mapping[str, Any], source: str) -> list[Block | None]:
    rows = [row for row in sweep["runs"] if row.get("state") != "done"]
    columns = [
        Column("name", "run", plain),
        Column("state", "state", plain),
        Column("reason", "reason", plain),
        Column("point", "point", _point_text),
        Column("seed", "seed", plain),
        Column("seconds", "seconds", count),
        Column("run", "directory", plain),
    ]
    excluded = [{"point": entry.get("values") or {}, "why": entry.get("why")} for entry in sweep.get("excluded") or []]
    out = [Column("point", "left out", _point_text), Column("why", "why", plain)]
    return [
        make_table("runs_not_done", "Failed, stopped and pending runs", columns, rows, [source]),
        make_table("excluded", "Points left out", out, excluded, [source]),
    ]


def _runs(sweep: Mapping[str, Any], source: str) -> list[Block | None]:
    metrics = _metrics(sweep)
    rows = [{**row, **{f"score/{n}": v for n, v in (row.get("scores") or {}).items()}} for row in sweep["runs"]]
    columns = [
        Column("name", "run", plain),
        Column("state", "state", plain),
        Column("seed", "seed", plain),
        Column("seconds", "seconds", count),
        *(Column(f"score/{name}", short_name(name), partial(_number, name)) for name in metrics),
    ]
    return [make_table("runs", "Runs", used(columns, rows), rows, [source])]


def _metrics(sweep: Mapping[str, Any]) -> list[str]:
    """Return the metrics to show: those that the sweep itself shows, else all it has."""
    every = list(dict.fromkeys(name for row in sweep["table"] for name in row["scores"]))
    return [name for name in sweep.get("metrics") or every if name in every] or every


def _figures(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a point's metrics as text: mean, spread and range, and how many runs have it where not all do."""
    most, found = _num_runs(row), {}
    for name, score in row["scores"].items():
        text = _number(name, score["mean"])
        if score["n"] > 1:
            sd, low, high = (_number(name, score[part]) for part in ("sd", "low", "high"))
            text += f" ± {sd} ({low} to {high})"
        found[f"figure/{name}"] = text if score["n"] == most else f"{text}, n = {score['n']}"
    return found


def _num_runs(row: Mapping[str, Any]) -> int:
    return max((score["n"] for score in row["scores"].values()), default=0)


def _number(name: str, value: float) -> str:
    return f"{value:.3f}" if name.endswith("/score") else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _point_text(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{field.rpartition('.')[2]} {plain_text(value)}" for field, value in point.items())


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(plain_text(value) for value in values)
