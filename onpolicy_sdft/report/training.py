"""How runs trained: time and memory, signs of collapse, verdicts, and what rollouts were recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onpolicy_sdft.report.charts import CHARTS, MIB_PER_GIB, PART_COLORS, PARTS, memory_names
from onpolicy_sdft.report.document import Block, Column, Picture, Table, Tile, Tiles, count, make_table, plain, share
from onpolicy_sdft.report.drawing import Record, new_figure, plot_text, png_bytes, series, style
from onpolicy_sdft.report.reading import Member, Reader

_COLLAPSE: Mapping[str, tuple[str, str]] = {
    "rollout/entropy": ("entropy, nats", ".3f"),
    "rollout/distinct_2": ("distinct-2", ".3f"),
    "rollout/shared_start": ("shared start", ".1%"),
    "rollout/demonstration_overlap": ("overlap", ".3f"),
    "rollout/verbatim_rate": ("verbatim", ".1%"),
    "rollout/surprise": ("surprise, nats", ".2f"),
    "rollout/leak": ("leak, nats", ".2f"),
    "rollout/mean_length": ("length", ".0f"),
    "rollout/length_ratio": ("length ratio", ".2f"),
    "rollout/truncated_rate": ("truncated", ".1%"),
}
_ENDS = 10  # the start and the end of a run are its first and last tenth


def finite(metrics: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Return the logged values of a metric, without gaps."""
    return [value for value in series(metrics, key)[1] if value == value]  # NaN differs from itself


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def tiles(member: Member, reader: Reader) -> Tiles | None:
    """Sum a run up in a few figures."""
    metrics = member.records.metrics
    if not metrics:
        return None
    skipped = sum(bool(record.get("skipped")) for record in metrics)
    steps = metrics[-1]["step"]
    found = [Tile("steps", f"{steps}" + (f" ({skipped} skipped)" if skipped else ""), [steps, skipped])]
    means: tuple[tuple[str, str, str], ...] = (
        ("seconds per step", "time/step_seconds", ",.1f"),
        ("rollout tokens/s", "rollout/tokens_per_second", ",.0f"),
    )
    for title, key, form in means:
        value = mean(finite(metrics, key))
        if value is not None:
            found.append(Tile(title, f"{value:{form}}", value))
    learned = finite(metrics, "train/total_loss_tokens")
    if learned:
        found.append(Tile("loss tokens learned", f"{learned[-1]:,.0f}", learned[-1]))
    for name, key, form in (("loss", "loss/total", ".3f"), ("fallbacks", "screen/fallback_rate", ".0%")):
        values = finite(metrics, key)
        if values:
            text = f"{values[0]:{form}} -> {values[-1]:{form}}"
            found.append(Tile(f"{name}, first to last", text, [values[0], values[-1]]))
    return Tiles("summary", tuple(found), reader.sources([member], "metrics.jsonl"))


def time_blocks(members: Sequence[Member], reader: Reader) -> list[Block | None]:
    """Split the time of runs, and show the most memory that was in use."""
    rows = [row for row in map(_time_row, members) if row]
    parts = [name for name in (*PARTS, "other") if any(row[f"{name}_seconds"] for row in rows)]
    columns = [Column("run", "run", plain), Column("steps", "steps", count)]
    columns += [Column("total_seconds", "seconds", count), Column("step_seconds", "seconds a step", plain)]
    columns += [Column(f"{name}_share", name, share) for name in parts]
    columns += [
        Column("learned_per_second", "learned tokens/s", count),
        Column("written_per_second", "rollout tokens/s", count),
    ]
    notes = []
    names = memory_names([record for member in members for record in member.records.metrics])
    columns += [Column(key, f"{name} memory", _gib) for key, name in names.items()]
    if names:
        notes.append(f"Memory: the most of all steps. {CHARTS['memory'][1]}")
    elif rows:
        notes.append("metrics.jsonl holds no memory (memory/*_mib).")
    sources = reader.sources(members, "metrics.jsonl")
    caption = "Shares of the time of whole steps; rates are over the whole run."
    table = make_table("time", "Time and memory", columns, rows, sources, caption=caption, notes=notes)
    return [table, _time_picture(rows, parts, sources) if len(rows) > 1 else None]


def collapse_blocks(members: Sequence[Member], reader: Reader) -> list[Block | None]:
    """Show the signs of collapse, from the start to the end of each run, and the verdicts by reason."""
    sources = reader.sources(members, "metrics.jsonl")
    return [_collapse_table(members, sources), _verdict_table(members, sources), _rule_table(members, sources)]


def rollout_table(members: Sequence[Member], reader: Reader) -> Table | None:
    """Count the recorded rollouts by run, verdict and reason."""
    rows = []
    for member in members:
        groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for record in member.records.rollouts:
            groups.setdefault((str(record.get("verdict", "")), str(record.get("reason") or "")), []).append(record)
        for (verdict, reason), records in sorted(groups.items()):
            lengths = [r["num_tokens"] for r in records if isinstance(r.get("num_tokens"), int | float)]
            row = {"run": member.name, "verdict": verdict, "reason": reason, "n": len(records)}
            rows.append({**row, "mean_tokens": mean(lengths)})
    columns = [
        Column("run", "run", plain),
        Column("verdict", "verdict", plain),
        Column("reason", "reason", plain),
        Column("n", "recorded", count),
        Column("mean_tokens", "mean tokens", count),
    ]
    sources = reader.sources(members, "rollouts.jsonl")
    caption = "A sample of each step's rollouts is recorded (train.rollout_samples)."
    return make_table("recorded_rollouts", "Recorded rollouts", columns, rows, sources, caption=caption)


def _time_row(member: Member) -> dict[str, Any] | None:
    metrics = member.records.metrics
    total = sum(finite(metrics, "time/step_seconds"))
    if not total:
        return None
    seconds = {name: sum(finite(metrics, key)) for name, (key, _) in PARTS.items()}
    seconds["other"] = max(0.0, total - sum(seconds.values()))
    row: dict[str, Any] = {"run": member.name, "steps": len(metrics), "total_seconds": total}
    row["step_seconds"] = total / len(finite(metrics, "time/step_seconds"))
    row |= {f"{name}_seconds": value for name, value in seconds.items()}
    row |= {f"{name}_share": value / total for name, value in seconds.items()}
    row["learned_per_second"] = sum(finite(metrics, "train/num_loss_tokens")) / total
    row["written_per_second"] = mean(finite(metrics, "rollout/tokens_per_second"))
    row |= {key: max(finite(metrics, key), default=None) for key in memory_names(metrics)}
    return row


def _time_picture(rows: Sequence[Mapping[str, Any]], parts: Sequence[str], sources: tuple[str, ...]) -> Picture:
    figure, axes = new_figure()
    figure.set_figheight(1.4 + 0.28 * len(rows))
    left = [0.0] * len(rows)
    for name in parts:
        widths = [row[f"{name}_seconds"] / row["steps"] for row in rows]
        axes.barh(range(len(rows)), widths, left=left, color=PART_COLORS[name], label=name, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [plot_text(row["run"], 32) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("seconds per step")
    style(axes)
    return Picture("time-by-run", "Time by run", "Where the seconds of a step went.", png_bytes(figure), sources)


def _collapse_table(members: Sequence[Member], sources: tuple[str, ...]) -> Table | None:
    rows = []
    for member in members:
        ends = {key: _ends(finite(member.records.metrics, key)) for key in _COLLAPSE}
        if any(ends.values()):
            rows.append({"run": member.name, **ends})
    used = {key: look for key, look in _COLLAPSE.items() if any(row[key] for row in rows)}
    columns = [Column("run", "run", plain)]
    columns += [Column(key, title, _from_to(form)) for key, (title, form) in used.items()]
    caption = (
        "Mean over the first tenth of the steps -> over the last. A steady fall of entropy or distinct-2 is a sign."
    )
    return make_table("collapse", "Signs of collapse", columns, rows, sources, caption=caption)


def _names_in(metrics: Sequence[Record]) -> list[str]:
    return sorted({key for record in metrics for key in record.get("values") or {}})


def _verdict_table(members: Sequence[Member], sources: tuple[str, ...]) -> Table | None:
    rows, keys = [], dict.fromkeys(f"screen/{name}_rate" for name in ("keep", "fallback", "drop"))
    for member in members:
        metrics = member.records.metrics
        names = _names_in(metrics)
        reasons = [key for key in names if key.startswith("screen/reason/")]
        rates = {key: mean(finite(metrics, key)) for key in (*keys, *reasons) if key in names}
        if rates:
            rows.append({"run": member.name, **rates})
        keys |= dict.fromkeys(reasons)
    used = [key for key in keys if any(row.get(key) for row in rows)]
    columns = [Column("run", "run", plain)]
    columns += [Column(key, key.split("/")[-1].removesuffix("_rate").replace("_", " "), _percent) for key in used]
    caption = "Shares of the rollouts, mean over the steps: verdicts, then the reasons of those not kept."
    return make_table("verdicts", "Verdicts and reasons", columns, rows, sources, caption=caption)


def _rule_table(members: Sequence[Member], sources: tuple[str, ...]) -> Table | None:
    """Show what each rule refused although the check accepts it."""
    rows = []
    for member in members:
        metrics = member.records.metrics
        names = _names_in(metrics)
        for key in (name for name in names if name.startswith("screen/refused_right/")):
            rule = key.split("/")[-1]
            right, refused = mean(finite(metrics, key)), mean(finite(metrics, f"screen/reason/{rule}"))
            if right:
                rule = rule.removesuffix("_rate").replace("_", " ")
                rows.append({"run": member.name, "rule": rule, "refused": refused, "right": right})
    columns = [
        Column("run", "run", plain),
        Column("rule", "rule", plain),
        Column("refused", "refused", _percent),
        Column("right", "of them right", _percent),
    ]
    caption = "Shares of the rollouts: what a rule of screening refused, and what of it the task's check accepts."
    return make_table("rules", "Right texts that rules refused", columns, rows, sources, caption=caption)


def _ends(values: Sequence[float]) -> tuple[float | None, float | None] | None:
    if not values:
        return None
    size = max(1, len(values) // _ENDS)
    return mean(values[:size]), mean(values[-size:])


def _from_to(form: str) -> Callable[[Any], str]:
    return lambda ends: f"{ends[0]:{form}} -> {ends[1]:{form}}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _gib(value: float) -> str:
    return f"{value / MIB_PER_GIB:.2f} GiB"
