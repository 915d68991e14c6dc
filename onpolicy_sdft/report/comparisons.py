"""The report of methods side by side on one sequence of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onpolicy_sdft.report.comparison_plots import draw_metrics, draw_trade, draw_tuning
from onpolicy_sdft.report.document import (
    Block,
    Column,
    Part,
    Picture,
    Sentence,
    count,
    decimals,
    estimate,
    estimate_below,
    make_table,
    plain,
    used,
)
from onpolicy_sdft.report.drawing import png_bytes
from onpolicy_sdft.report.origins import origin_blocks, origin_of_object, start_of
from onpolicy_sdft.report.reading import Member, Reader
from onpolicy_sdft.report.runs import add_overlays, add_training, stages_track
from onpolicy_sdft.report.sequence_plots import draw_stages_of_methods
from onpolicy_sdft.report.sequences import METRICS, matrix_blocks, ordered, stage_members

_MATCHES = {
    "steps": "the same number of optimizer steps",
    "tokens": "the same number of learned tokens",
    "acquisition": "training until the same validation score",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One sequence of a comparison."""

    name: str
    row: Mapping[str, Any]
    path: Path
    sequence: Mapping[str, Any]
    members: list[Member]

    @property
    def method(self) -> str:
        """Which method, joint training apart."""
        return f"{self.row.get('method')} (joint)" if self.row.get("joint") else str(self.row.get("method"))


def comparison_part(path: Path, name: str, reader: Reader) -> Part:
    """Report a comparison.

    Args:
        path: Its directory.
        name: What to call it.
        reader: Reads and names its files.

    Returns:
        Its part of the report.
    """
    part = Part(name, "comparison")
    source = reader.name(path / "comparison.json")
    comparison = reader.object_or_name(path / "comparison.json", "the comparison", part.missing)
    entries = _entries(path, comparison, reader, part, source)
    _add_origins(part, name, comparison, entries, source, reader)
    for title, what, make in (
        ("Methods", "methods by metrics", partial(_method_blocks, comparison, source, part.missing)),
        ("Sequences", "the sequences", partial(_rows, comparison, source)),
        ("Score over the stages", "score over the stages", partial(_stages, entries, reader)),
        ("Methods against each other", "tests", partial(_tests, comparison, source)),
        ("Tuning", "tuning", partial(_tuning, comparison, source)),
    ):
        part.add(title, part.attempt(source, what, make), is_summary=True)
    matrices = []
    for entry in entries:
        file = reader.name(entry.path / "sequence.json")
        make = partial(matrix_blocks, entry.sequence, file, entry.name)
        matrices += part.attempt(file, "the accuracy matrix", make)
    part.add("Accuracy by sequence", sorted(matrices, key=lambda block: not isinstance(block, Picture)))
    tracks, ends = [], set()
    for entry in entries:
        track, marks = stages_track(entry.method, entry.members, reader)
        tracks.append(track)
        ends.add(tuple(marks))
    add_overlays(part, tracks, ends.pop() if len(ends) == 1 else ())
    add_training(part, [member for entry in entries for member in entry.members], reader)
    return part


def _entries(path: Path, comparison: Mapping[str, Any], reader: Reader, part: Part, source: str) -> list[Entry]:
    rows = comparison.get("rows")
    entries = []
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, Mapping) or not isinstance(row.get("sequence"), str):
            part.missing.append(f"{source}: the sequence of a row")
            continue
        if row.get("stopped"):
            part.missing.append(f"{reader.name(path / row['sequence'])}: not whole, in tables only ({row['stopped']})")
            continue
        place = path / row["sequence"]
        sequence = reader.object_or_name(place / "sequence.json", "a sequence of the comparison", part.missing)
        members = stage_members(place, sequence, reader, part, f"{row['sequence']}/")
        if sequence:
            entries.append(Entry(row["sequence"], row, place, sequence, members))
    return entries


def _add_origins(
    part: Part, name: str, comparison: Mapping[str, Any], entries: list[Entry], source: str, reader: Reader
) -> None:
    own: list[Block | None] = []
    methods, match = comparison.get("methods") or [], comparison.get("match")
    if methods:
        seeds = comparison.get("seeds") or []
        what = _MATCHES.get(str(match), str(match))
        text = (
            f"{len(methods)} methods ({', '.join(map(str, methods))}), seeds {', '.join(map(str, seeds))}; "
            f"equal between methods: {what}."
        )
        own.append(Sentence("design", text, {"methods": methods, "seeds": seeds, "match": match}, (source,)))
    alone = origin_of_object(name, comparison, source)
    origins = [origin_of_object(e.name, e.sequence, reader.name(e.path / "sequence.json")) for e in entries]
    if alone.config or alone.manifest:
        own += part.attempt(source, "the config", partial(origin_blocks, [alone]))
    if origins:
        own += part.attempt("sequence.json", "what was run", partial(origin_blocks, origins, "sequence"))
    part.subtitle = next((start_of(origin.manifest) for origin in origins if origin.manifest), "")
    part.add("What was run", own)


def _drawn_rows(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in comparison["rows"] if not row.get("joint") and not row.get("stopped")]


def _method_blocks(comparison: Mapping[str, Any], source: str, missing: list[str]) -> list[Block | None]:
    over = comparison["over_seeds"]
    names = ordered(dict.fromkeys(name for each in over.values() for name in each))
    rows: list[dict[str, Any]] = [
        {"metric": name, **{method: each.get(name) for method, each in over.items()}} for name in names
    ]
    columns = [Column("metric", "metric", _metric), *(Column(method, method, _over_seeds) for method in over)]
    notes = [f"{name.replace('_', ' ')}: {METRICS[name]}." for name in names if name in METRICS]
    caption = (
        "Mean over seeds with its 95 % interval over questions (of KL the range of the seeds); below, the range of the "
        "seeds and their number n."
    )
    blocks = [make_table("over_seeds", "Methods over seeds", columns, rows, [source], caption=caption, notes=notes)]
    drawn = _drawn_rows(comparison)
    pictures = (
        ("metrics-by-method", "Metrics by method", "A dot with its interval a seed; the bar is the mean over seeds.",
         draw_metrics(drawn, comparison["methods"], [name for name in names if name != "kl"])),
        ("learning-against-forgetting", "Learning against forgetting",
         "A point a method and seed (its number beside it) with intervals. Against forgetting, up and left is better; "
         "against the change of sets never trained, up and right.", draw_trade(drawn, comparison["methods"])),
    )  # fmt: skip
    found: list[Block | None] = [*blocks]
    for name, title, text, figure in pictures:
        if figure is None:
            missing.append(f"{source}: figures for {title.lower()}")
        else:
            found.append(Picture(name, title, text, png_bytes(figure), (source,)))
    return found


def _rows(comparison: Mapping[str, Any], source: str) -> list[Block | None]:
    names = ordered(dict.fromkeys(name for row in comparison["rows"] for name in row.get("metrics") or {}))
    rows = [
        {**row, **{f"metrics/{name}": (row.get("metrics") or {}).get(name) for name in names}}
        for row in comparison["rows"]
    ]
    columns = [
        Column("method", "method", plain),
        Column("seed", "seed", plain),
        Column("joint", "joint", plain),
        Column("lr", "learning rate", lambda value: f"{value:g}"),
        Column("steps", "steps", count),
        Column("loss_tokens", "loss tokens", count),
        Column("seconds", "seconds", count),
        *(Column(f"metrics/{name}", name.replace("_", " "), estimate_below) for name in names),
        Column("kl", "KL(base || tuned)", decimals(4)),
        Column("stopped", "stopped", plain),
        Column("sequence", "sequence", plain),
    ]
    caption = "Each metric with its 95 % interval over questions."
    short = [
        f"{row['sequence']}: stage {number} ended by {why}, not at its target score."
        for row in comparison["rows"]
        for number, why in enumerate(row.get("ended_by") or [], start=1)
        if comparison.get("match") == "acquisition" and why != "stop_score"
    ]
    table = make_table("sequences", "Sequences", used(columns, rows), rows, [source], caption=caption, notes=short)
    behind = [{"method": method, **each} for method, each in (comparison.get("intransigence") or {}).items()]
    columns = [
        Column("method", "method", plain),
        Column("ceiling", "joint training, by task", _numbers),
        Column("values", "behind it, by seed", _numbers),
    ]
    caption = "Mean over the tasks of the score of joint training minus that right after the task's own stage."
    return [table, make_table("intransigence", "Behind joint training", columns, behind, [source], caption=caption)]


def _stages(entries: list[Entry], reader: Reader) -> list[Block | None]:
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        if not entry.row.get("joint"):
            by_method.setdefault(entry.method, []).append(entry.sequence)
    figure = draw_stages_of_methods(by_method)
    if figure is None:
        return []
    sources = tuple(reader.name(entry.path / "sequence.json") for entry in entries)
    caption = "Each method's mean over seeds; dots are the seeds."
    return [Picture("stages-by-method", "Score over the stages", caption, png_bytes(figure), sources)]


def _tests(comparison: Mapping[str, Any], source: str) -> list[Block | None]:
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for each in comparison.get("differences") or []:
        pairs.setdefault((each["a"], each["b"]), {"a": each["a"], "b": each["b"]})[each["metric"]] = each
    names = ordered(dict.fromkeys(name for row in pairs.values() for name in row if name not in ("a", "b")))
    columns = [Column("a", "a", plain), Column("b", "b", plain)]
    columns += [Column(name, _metric(name), estimate_below) for name in names]
    rows = list(pairs.values())
    caption = (
        "a - b: paired bootstrap over questions, seeds averaged; an interval that holds 0 leaves open which is higher."
    )
    differences = make_table("differences", "Differences of metrics", columns, rows, [source], caption=caption)
    columns = [
        Column("a", "a", plain),
        Column("b", "b", plain),
        Column("seed", "seed", plain),
        Column("label", "task", plain),
        Column("n", "questions", count),
        Column("only_a", "only a right", count),
        Column("only_b", "only b right", count),
        Column("p", "p (exact, two-sided)", _p_value),
    ]
    rows = list(comparison.get("mcnemar") or [])
    caption = (
        "After the last stage, on the same questions. Each p is of its test alone, not corrected for their number."
    )
    return [differences, make_table("mcnemar", "McNemar's tests", columns, rows, [source], caption=caption)]


def _tuning(comparison: Mapping[str, Any], source: str) -> list[Block | None]:
    rows = list(comparison.get("tuning") or [])
    columns = [
        Column("method", "method", plain),
        Column("lr", "learning rate", lambda value: f"{value:g}"),
        Column("score", "validation score", decimals(3)),
        Column("chosen", "chosen", plain),
        Column("stopped", "stopped", plain),
        Column("run", "run", plain),
    ]
    table = make_table("tuning", "Learning rates tried", used(columns, rows), rows, [source])
    figure = draw_tuning(rows, comparison["methods"])
    if figure is None:
        return [table]
    caption = "On the validation set of the first stage; the chosen rate is ringed."
    return [table, Picture("tuning", "Learning rates tried", caption, png_bytes(figure), (source,))]


def _over_seeds(value: Mapping[str, Any]) -> str:
    if value.get("mean") is None:
        return "-"
    text = estimate({**value, "value": value["mean"]})
    values = [each for each in value.get("values") or [] if each is not None]
    spread = f"{min(values):.3f} to {max(values):.3f}, " if len(values) > 1 else ""
    return f"{text}\n{spread}n = {value.get('n', '?')}"


def _metric(name: str) -> str:
    return "KL(base || tuned)" if name == "kl" else name.replace("_", " ")


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
