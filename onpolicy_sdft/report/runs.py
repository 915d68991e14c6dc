"""The report of one run, and of several side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from onpolicy_sdft.report.charts import CHARTS, MAX_TRACKS, Track, chain, chart_pictures, draw_chart
from onpolicy_sdft.report.document import (
    Block,
    Column,
    Part,
    Picture,
    RolloutLog,
    Sentence,
    Table,
    count,
    decimals,
    estimate,
    make_table,
    plain,
    used,
)
from onpolicy_sdft.report.drawing import png_bytes
from onpolicy_sdft.report.guards import guard_blocks
from onpolicy_sdft.report.origins import origin_blocks, origins_of, start_of
from onpolicy_sdft.report.reading import Member, Reader
from onpolicy_sdft.report.score_plots import draw_scores, scores_picture
from onpolicy_sdft.report.tables import (
    before_after_table,
    kl_sentence,
    latest_stage,
    paired_sets,
    score_notes,
    scores_table,
)
from onpolicy_sdft.report.training import collapse_blocks, rollout_table, tiles, time_blocks

SCORES = "scores"  # the picture of scores before and after
_SCORES_TEXT = (
    "Score before and after",
    "Retention sets hold what the base model could do before: they should not fall.",
)


def one_run(member: Member, reader: Reader) -> Part:
    """Report a run.

    Args:
        member: The run; it may be unfinished.
        reader: Names its files.

    Returns:
        Its part of the report.
    """
    records = member.records
    part = Part(member.name, "run", start_of(records.manifest), missing=list(records.missing))
    metrics_name = reader.name(member.path / "metrics.jsonl")
    part.add("Summary", part.attempt(metrics_name, "the summary", lambda: [tiles(member, reader)]))
    add_guards(part, [member], reader)
    add_origins(part, [member], reader)
    summary_name = reader.name(member.path / "eval/summary.json")
    part.add("Scores", part.attempt(summary_name, "the scores", lambda: _scores_of_one(member, summary_name)))
    part.add("Curves", _curves(part, member, reader))
    add_training(part, [member], reader)
    return part


def several_runs(members: Sequence[Member], reader: Reader) -> Part:
    """Report several runs side by side: one table, and one picture a metric.

    Args:
        members: The runs.
        reader: Names their files.

    Returns:
        Their part of the report.
    """
    part = Part(f"{len(members)} runs", "runs", ", ".join(member.name for member in members))
    for member in members:
        part.missing += [f"{member.name}/{line}" for line in member.records.missing]
    add_guards(part, members, reader)
    add_origins(part, members, reader)
    part.add("Scores", part.attempt("eval/summary.json", "the scores", lambda: _scores_of_several(members, reader)))
    add_overlays(part, tracks_of(members, reader))
    add_training(part, members, reader)
    return part


def tracks_of(members: Sequence[Member], reader: Reader) -> list[Track]:
    """Return the figures of runs, to be drawn over one another."""
    return [Track(m.name, m.records.metrics, reader.sources([m], "metrics.jsonl")) for m in members]


def add_guards(part: Part, members: Sequence[Member], reader: Reader) -> None:
    """Add how the models that were left compare with the start, and what was noticed on the way."""
    made = part.attempt("alarms.jsonl, gate.jsonl", "alarms and gate", partial(guard_blocks, members, reader))
    part.add("Alarms and gate", made)


def add_origins(part: Part, members: Sequence[Member], reader: Reader) -> None:
    """Add what was run."""
    origins = origins_of(members, reader)
    blocks = part.attempt("manifest.json, config.yaml", "what was run", partial(origin_blocks, origins))
    part.add("What was run", blocks)


def add_overlays(part: Part, tracks: Sequence[Track], ends: Sequence[int] = ()) -> None:
    """Add the pictures of several runs, one a metric; more than can be told apart are named instead."""
    there = [track for track in tracks if track.metrics]
    num_looks = len({track.label for track in there})
    if num_looks > MAX_TRACKS:
        part.missing.append(
            f"curves over the steps: {num_looks} runs are more than {MAX_TRACKS} looks; name fewer: sdft report RUN RUN"
        )
        return
    part.add("Curves", part.attempt("metrics.jsonl", "the curves", lambda: chart_pictures(there, ends)))


def add_training(part: Part, members: Sequence[Member], reader: Reader) -> None:
    """Add time and memory, the signs of collapse, and the recorded rollouts."""
    for title, what, make in (
        ("Time and memory", "time and memory", time_blocks),
        ("Collapse and screening", "the signs of collapse", collapse_blocks),
    ):
        part.add(title, part.attempt("metrics.jsonl", what, partial(make, members, reader)))
    part.add("Rollouts", part.attempt("rollouts.jsonl", "the counts", lambda: [rollout_table(members, reader)]))
    for member in members:
        if member.records.rollouts:
            name = reader.name(member.path / "rollouts.jsonl")
            part.logs.append(RolloutLog(member.name, name, member.records.rollouts))


def stages_track(label: str, members: Sequence[Member], reader: Reader) -> tuple[Track, list[int]]:
    """Put the stages of a sequence behind each other as one curve; return the steps where stages end too."""
    metrics, ends = chain([member.records.metrics for member in members])
    return Track(label, metrics, reader.sources(members, "metrics.jsonl")), ends


def _scores_of_one(member: Member, source: str) -> list[Block | None]:
    summary = member.records.summary
    blocks: list[Block | None] = []
    if summary.get("before") or summary.get("after"):
        text = before_after_table(summary)
        data = tuple({"before": before, "after": after} for before, after in paired_sets(summary))
        caption = "Score with its 95 % interval; length, truncation and speed are of the latest evaluation."
        notes = tuple(score_notes({name: summary.get(name) for name in ("before", "after")}))
        blocks.append(Table("scores", "Before and after training", text, data, (source,), caption, notes))
    if summary.get("eval"):
        stage = summary["eval"]
        text, notes = scores_table(stage), tuple(score_notes({"eval": stage}))
        data = tuple({"eval": entry} for entry in stage.get("sets") or [])
        blocks.append(Table("scores_eval", "Scored by sdft eval", text, data, (source,), "", notes))
    for name in ("after", "eval"):
        stage = summary.get(name) or {}
        sentence = kl_sentence({"after": stage})
        if sentence:
            blocks.append(Sentence(f"kl_{name}", sentence, _without_sums(stage["kl"]), (source,)))
    return [block for block in blocks if not isinstance(block, Table) or block.text.rows]


def _without_sums(kl: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a divergence without what each prompt adds to them."""
    return {key: value for key, value in kl.items() if key not in ("sums", "nll_sums")}


def _scores_of_several(members: Sequence[Member], reader: Reader) -> list[Block | None]:
    sources = reader.sources(members, "eval/summary.json")
    rows: list[dict[str, Any]] = []
    shifts: list[dict[str, Any]] = []
    for member in members:
        summary = member.records.summary
        name, stage = latest_stage(summary)
        for before, after in paired_sets({"before": summary.get("before"), "after": stage}):
            entry = after or before or {}
            row: dict[str, Any] = {"set": entry.get("label"), "run": member.name, "stage": name if after else "before"}
            row |= {"kind": "retention" if entry.get("retention") else "task", "n": entry.get("n")}
            row |= {"before": _estimate(before), "after": _estimate(after), "change": None}
            if row["before"] and row["after"]:
                row["change"] = row["after"]["value"] - row["before"]["value"]
            row |= {key: entry.get(key) for key in ("mean_length", "truncated_rate", "tokens_per_second", "note")}
            rows.append(row)
        if stage.get("kl"):
            kl = _without_sums(stage["kl"])
            shifts.append({"run": member.name, **kl, "kl": _bounds(kl, ""), "nll": _bounds(kl, "nll_")})
    sets = list(dict.fromkeys(row["set"] for row in rows))
    rows.sort(key=lambda row: (row["kind"] != "task", sets.index(row["set"])))
    notes = [line for member in members for line in score_notes(member.records.summary)]
    table = make_table(
        "scores",
        "Scores",
        used(_SCORE_COLUMNS, rows),
        rows,
        sources,
        caption="95 % intervals.",
        notes=list(dict.fromkeys(notes)),
    )
    picture = scores_picture({member.name: member.records.summary for member in members}, sources)
    return [
        table,
        picture,
        make_table("kl", "Distance from the base model", used(_KL_COLUMNS, shifts), shifts, sources),
    ]


_SCORE_COLUMNS = (
    Column("set", "set", plain),
    Column("run", "run", plain),
    Column("kind", "kind", plain),
    Column("n", "n", count),
    Column("before", "before [95 %]", estimate),
    Column("after", "after [95 %]", estimate),
    Column("change", "change", lambda value: f"{value:+.3f}"),
    Column("mean_length", "mean length", decimals(0)),
    Column("truncated_rate", "truncated", lambda value: f"{value:.0%}"),
)
_KL_COLUMNS = (
    Column("run", "run", plain),
    Column("kl", "KL(base || tuned), nats a token", estimate),
    Column("nll", "NLL of seed completions", estimate),
    Column("num_completions", "completions", count),
    Column("num_tokens", "tokens", count),
)


def _estimate(entry: Any) -> dict[str, Any] | None:
    if entry is None or entry.get("score") is None:
        return None
    return {"value": entry["score"], "low": entry.get("low"), "high": entry.get("high")}


def _bounds(kl: dict[str, Any], prefix: str) -> dict[str, Any] | None:
    if kl.get(f"{prefix}mean") is None:
        return None
    return {"value": kl[f"{prefix}mean"], "low": kl.get(f"{prefix}low"), "high": kl.get(f"{prefix}high")}


def _curves(part: Part, member: Member, reader: Reader) -> list[Block]:
    records, blocks, undrawn = member.records, list[Block](), []
    pictures = {SCORES: ("eval/summary.json", *_SCORES_TEXT, partial(draw_scores, records.summary))}
    for name, (title, caption) in CHARTS.items():
        pictures[name] = ("metrics.jsonl", title, caption, partial(draw_chart, name, records.metrics))
    for name, (file, title, caption, draw) in pictures.items():
        source, num_missing = reader.name(member.path / file), len(part.missing)
        drawn = part.attempt(source, title.lower(), partial(_curve, name, title, caption, draw, source))
        if not drawn and len(part.missing) == num_missing:
            undrawn.append(title.lower())
        blocks += drawn
    if undrawn:
        part.missing.append(f"curves without data: {', '.join(undrawn)}")
    return blocks


def _curve(name: str, title: str, caption: str, draw: Callable[[], Figure | None], source: str) -> list[Block | None]:
    figure = draw()
    return [Picture(name, title, caption, png_bytes(figure), (source,))] if figure is not None else []
