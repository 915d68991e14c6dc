"""Charts over the optimizer steps, of one run or of several.

What is drawn stands in the registry of metrics (``runs/metrics.py``): a metric names its chart and its unit. Of one run
all metrics of a chart share a picture, with a panel a unit; of several runs each metric has a picture of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from onpolicy_sdft.report.document import Picture
from onpolicy_sdft.report.drawing import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    LINES,
    MANY_STEPS,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Record,
    finish,
    from_zero,
    look_of,
    new_figure,
    plot_line,
    plot_text,
    png_bytes,
    series,
    style,
)
from onpolicy_sdft.runs.metrics import METRICS, Metric

#: Title and caption of each chart, in the order of the page.
CHARTS: Mapping[str, tuple[str, str]] = {
    "loss": ("Loss", "Of a loss token. Crosses: steps without an update."),
    "gradient": ("Gradient norm", "Before it is clipped."),
    "validation": ("Score during training", "On the validation sets."),
    "fallbacks": ("Fallbacks by reason", "Rollouts that were not learned; the demonstration was, or nothing."),
    "lengths": ("Lengths", "A ratio that climbs means that answers grow away from the data."),
    "diversity": ("Entropy and variety", "A steady fall of either is a sign of collapse."),
    "surprise": (
        "Surprise and leak",
        "How unlikely rollouts are under the bare prompt, and how much likelier the demonstration alone makes them. "
        "Shortcuts and copies are far above the policy's own bare answers.",
    ),
    "speed": ("Speed", "Tokens written while rollouts are sampled; tokens learned over whole steps."),
    "time": ("Time", "Where the seconds of a step went."),
    "memory": (
        "Memory",
        "Of the largest rank: on a GPU the peak of each part of the step, on a CPU what was resident after it.",
    ),
}
#: Parts of a step, what times them, and their colour.
PARTS = {
    "rollout": ("time/rollout_seconds", BLUE),
    "screen": ("time/screen_seconds", ORANGE),
    "score": ("time/score_seconds", PURPLE),
    "learn": ("time/learn_seconds", GREEN),
    "wait": ("time/rollout_wait_seconds", SKY),
}
PART_COLORS = {**{name: color for name, (_, color) in PARTS.items()}, "other": GREY}
MIB_PER_GIB = 1024
MAX_TRACKS = len(CYCLE) * len(LINES)  # looks that can be told apart
_FEW_TRACKS = 4  # up to here what was smoothed is drawn faintly too
_WORTH_SHOWING = 0.001  # of the whole: a part that takes less is left to the other time


@dataclass(frozen=True, slots=True)
class Track:
    """One run's figures; tracks with the same label look alike and are named once."""

    label: str
    metrics: Sequence[Record]
    sources: tuple[str, ...]


def _logged(logs: Iterable[Sequence[Record]], chart: str = "") -> list[tuple[str, Metric]]:
    """Return the logged metrics of a chart, or of any, by name; a name with a ``*`` stands for several."""
    keys = dict.fromkeys(key for log in logs for record in log for key in record.get("values") or {})
    drawn = [metric for metric in METRICS if metric.chart and chart in ("", metric.chart)]
    return [(key, metric) for metric in drawn for key in keys if fnmatchcase(key, metric.name)]


def short_label(key: str, metric: Metric) -> str:
    """Return a metric's name in a legend: what its ``*`` stands for, or the last part of it without the unit."""
    before, star, after = metric.name.partition("*")
    name = key[len(before) : len(key) - len(after)] if star else key.rpartition("/")[2]
    for unit in ("_rate", "_mib", "_seconds"):
        name = name.removesuffix(unit)
    return name.replace("/", " ").replace("_", " ")


def memory_names(metrics: Sequence[Record]) -> dict[str, str]:
    """Return the logged metrics of memory, with the part of a step that each is of."""
    return {key: short_label(key, metric) for key, metric in _logged([metrics], "memory")}


def draw_chart(chart: str, metrics: Sequence[Record]) -> Figure | None:
    """Draw a chart of one run.

    Args:
        chart: A key of ``CHARTS``.
        metrics: Lines of ``metrics.jsonl``.

    Returns:
        The figure, or None without figures. What is zero throughout is drawn only where nothing else is.
    """
    if chart == "time":
        return draw_time(metrics)
    found = _logged([metrics], chart)
    lines = {key: series(metrics, key) for key, _ in found}
    there = [pair for pair in found if any(map(math.isfinite, lines[pair[0]][1]))]
    shown = [(key, metric) for key, metric in there if any(v and math.isfinite(v) for v in lines[key][1])] or there
    if not shown:
        return None
    units = list(dict.fromkeys(metric.unit for _, metric in shown))
    figure = Figure(figsize=(7.2, 3.4 if len(units) == 1 else 2.3 * len(units)), layout="constrained")
    panels = dict(zip(units, figure.subplots(len(units), 1, sharex=True, squeeze=False)[:, 0], strict=True))
    labels = [short_label(key, metric) for key, metric in shown]
    for number, ((key, metric), label) in enumerate(zip(shown, labels, strict=True)):
        steps, values = lines[key]
        scaled = [value * _scale(metric.unit) for value in values]
        name = label if labels.count(label) == 1 else f"{label} ({key.partition('/')[0]})"
        plot_line(panels[metric.unit], steps, scaled, plot_text(name, 40), CYCLE[number % len(CYCLE)])
    if chart == "loss":
        _mark_skipped(panels[units[0]], metrics)
    for unit, axes in panels.items():
        _finish_panel(axes, unit)
        style(axes)
    return finish(figure, panels[units[-1]])


def chart_pictures(tracks: Sequence[Track], ends: Sequence[int] = ()) -> list[Picture | None]:
    """Draw every metric that has a chart and that any of the tracks has, a picture each.

    Args:
        tracks: The runs, as many looks as ``MAX_TRACKS`` at most.
        ends: Steps to mark, where stages end.

    Returns:
        The pictures; none of a metric that is zero throughout.
    """
    names = _logged(track.metrics for track in tracks)
    return [_picture_of_tracks(key, metric, tracks, ends) for key, metric in names]


def chain(logs: Sequence[Sequence[Record]]) -> tuple[list[Record], list[int]]:
    """Put the logs of stages behind each other, with steps counted through.

    Args:
        logs: Lines of ``metrics.jsonl``, stage after stage.

    Returns:
        The lines, and the last step of each stage but the last.
    """
    chained: list[Record] = []
    ends, offset = [], 0
    for log in logs:
        chained += [{**record, "step": record["step"] + offset} for record in log]
        offset = max((record["step"] for record in chained), default=0)
        ends.append(offset)
    return chained, ends[:-1]


def draw_time(metrics: Sequence[Record]) -> Figure | None:
    """Draw what the seconds of each step were spent on, stacked.

    Args:
        metrics: Lines of ``metrics.jsonl``.

    Returns:
        The figure, or None without times.
    """
    timed = [r for r in metrics if (r.get("values") or {}).get("time/step_seconds") is not None]
    if not timed:
        return None
    figure, axes = new_figure()
    steps = [record["step"] for record in timed]
    totals = [record["values"]["time/step_seconds"] for record in timed]
    split = {name: [r["values"].get(key) or 0.0 for r in timed] for name, (key, _) in PARTS.items()}
    split = {name: values for name, values in split.items() if sum(values) >= _WORTH_SHOWING * sum(totals)}
    known = [sum(parts) for parts in zip(*split.values(), strict=True)] if split else [0.0] * len(totals)
    split["other"] = [max(0.0, t - k) for t, k in zip(totals, known, strict=True)]
    whole = sum(sum(values) for values in split.values()) or 1.0
    bottom = [0.0] * len(steps)
    for name, values in split.items():
        color, label = PART_COLORS[name], f"{name} ({sum(values) / whole:.0%})"
        top = [b + v for b, v in zip(bottom, values, strict=True)]
        if len(steps) < MANY_STEPS:
            axes.bar(steps, values, bottom=bottom, width=0.8, color=color, label=label)
        else:
            axes.fill_between(steps, bottom, top, step="mid", color=color, linewidth=0, label=label)
        bottom = top
    axes.set_ylabel("seconds per step")
    from_zero(axes)
    return finish(figure, axes)


def _picture_of_tracks(key: str, metric: Metric, tracks: Sequence[Track], ends: Sequence[int]) -> Picture | None:
    figure, axes = new_figure()
    looks = {label: number for number, label in enumerate(dict.fromkeys(track.label for track in tracks))}
    drawn, named = [], set()
    few = len(tracks) <= _FEW_TRACKS
    for track in tracks:
        steps, values = series(track.metrics, key)
        if not any(value and math.isfinite(value) for value in values):
            continue
        number = looks[track.label]
        label = None if track.label in named else plot_text(track.label, 40)
        scaled = [value * _scale(metric.unit) for value in values]
        plot_line(axes, steps, scaled, label, *look_of(number), size=4 if few else 2.5, faint=few)
        drawn.append(track)
        named.add(track.label)
    if not drawn:
        return None
    for end in ends:
        axes.axvline(end + 0.5, color=GREY, linewidth=0.8, linestyle=":")
    _finish_panel(axes, metric.unit)
    title = f"{CHARTS[metric.chart][0]}: {short_label(key, metric)}"
    sources = tuple(source for track in drawn for source in track.sources)
    caption = f"{metric.meaning[:1].upper()}{metric.meaning[1:]} ({key})."
    return Picture(key.replace("/", "-"), title, caption, png_bytes(finish(figure, axes)), sources)


def _mark_skipped(axes: Axes, metrics: Sequence[Record]) -> None:
    skipped = [record["step"] for record in metrics if record.get("skipped")]
    if skipped:
        label, at = f"no update (steps: {len(skipped)})", [0.02] * len(skipped)
        axes.plot(skipped, at, "x", color=RED, label=label, transform=axes.get_xaxis_transform())


def _finish_panel(axes: Axes, unit: str) -> None:
    axes.set_ylabel("GiB" if unit == "MiB" else unit)
    if axes.dataLim.y0 >= 0:
        from_zero(axes)
    else:
        axes.axhline(0.0, color=GREY, linewidth=0.8, linestyle=":")
    if unit == "share":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _scale(unit: str) -> float:
    return 1 / MIB_PER_GIB if unit == "MiB" else 1.0
