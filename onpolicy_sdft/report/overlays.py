"""Several runs in one picture, one picture a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onpolicy_sdft.report.curves import MEMORY_CAPTION, MIB_PER_GIB, memory_keys, memory_part
from onpolicy_sdft.report.document import Picture
from onpolicy_sdft.report.drawing import (
    BLUE,
    CYCLE,
    GREY,
    LINES,
    MANY_STEPS,
    Record,
    figure_legend,
    finish,
    from_zero,
    new_figure,
    panels,
    plot_text,
    png_bytes,
    reach,
    series,
    smooth,
    style,
)
from onpolicy_sdft.report.tables import latest_stage

_FEW_TRACKS = 4  # up to here what was smoothed is drawn faintly too
MAX_TRACKS = len(CYCLE) * len(LINES)  # looks that can be told apart


@dataclass(frozen=True, slots=True)
class Track:
    """One curve's figures; tracks with the same label look alike and are named once."""

    label: str
    metrics: Sequence[Record]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overlay:
    """One picture: a metric of all tracks."""

    title: str
    caption: str
    unit: str
    from_zero: bool = True
    scale: float = 1.0


OVERLAYS: Mapping[str, Overlay] = {
    "loss/total": Overlay("Loss", "Losses of different objectives do not compare.", "nats per loss token", False),
    "train/grad_norm": Overlay("Gradient norm", "Before clipping.", "norm"),
    "rollout/mean_length": Overlay("Length of rollouts", "", "tokens"),
    "rollout/length_ratio": Overlay("Length / demonstration", "1: as long as the demonstrations.", "ratio"),
    "rollout/truncated_rate": Overlay("Truncated rollouts", "Hit the length limit.", "share of rollouts"),
    "screen/fallback_rate": Overlay("Fallbacks", "The demonstration was learned instead.", "share of rollouts"),
    "screen/drop_rate": Overlay("Dropped rollouts", "Nothing was learned instead.", "share of rollouts"),
    "rollout/entropy": Overlay("Token entropy", "A steady fall is a sign of collapse.", "nats"),
    "rollout/distinct_2": Overlay("Distinct-2", "Different bigrams among all of a step's.", "share"),
    "rollout/demonstration_overlap": Overlay("Overlap with the demonstration", "Shared 4-grams.", "share"),
    "rollout/verbatim_rate": Overlay("Verbatim copies", "Rollouts that are the demonstration.", "share of rollouts"),
    "rollout/surprise": Overlay("Surprise", "-log p of rollouts under the bare prompt.", "nats a token"),
    "rollout/leak": Overlay("Leak", "What the demonstration explains without the question.", "nats a token", False),
    "rollout/tokens_per_second": Overlay("Rollout speed", "While writing.", "tokens/s"),
    "train/tokens_per_second": Overlay("Learning speed", "Loss tokens over whole steps.", "tokens/s"),
    "time/step_seconds": Overlay("Time of a step", "", "seconds"),
}


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


def overlay_pictures(tracks: Sequence[Track], ends: Sequence[int] = ()) -> list[Picture | None]:
    """Draw every metric that any of the tracks has.

    Args:
        tracks: The runs, as many looks as ``MAX_TRACKS`` at most.
        ends: Steps to mark, where stages end.

    Returns:
        One picture a metric; none of a metric that is zero throughout.
    """
    keys = dict.fromkeys(key for track in tracks for record in track.metrics for key in record.get("values") or {})
    known = dict(OVERLAYS)
    for key in keys:
        if key.startswith("eval/") and key.endswith("/score"):
            label = key.removeprefix("eval/").removesuffix("/score")
            known[key] = Overlay(f"Score during training: {label}", "On the validation set.", "score")
    for key in dict.fromkeys(key for track in tracks for key in memory_keys(track.metrics)):
        known[key] = Overlay(f"Memory: {memory_part(key)}", MEMORY_CAPTION, "GiB", scale=1 / MIB_PER_GIB)
    return [_picture(key, overlay, tracks, ends) for key, overlay in known.items() if key in keys]


def _picture(key: str, overlay: Overlay, tracks: Sequence[Track], ends: Sequence[int]) -> Picture | None:
    figure, axes = new_figure()
    looks = {label: number for number, label in enumerate(dict.fromkeys(track.label for track in tracks))}
    drawn, named = [], set()
    for track in tracks:
        steps, values = series(track.metrics, key)
        if not any(value == value and value for value in values):  # NaN differs from itself
            continue
        number = looks[track.label]
        label = None if track.label in named else plot_text(track.label, 40)
        color, line = CYCLE[number % len(CYCLE)], LINES[number // len(CYCLE) % len(LINES)]
        _draw(axes, steps, [value * overlay.scale for value in values], color, line, label, len(tracks))
        drawn.append(track)
        named.add(track.label)
    if not drawn:
        return None
    for end in ends:
        axes.axvline(end + 0.5, color=GREY, linewidth=0.8, linestyle=":")
    if overlay.from_zero:
        from_zero(axes)
    axes.set_ylabel(overlay.unit)
    png = png_bytes(finish(figure, axes))
    caption = f"{overlay.caption} Metric {key}.".strip()
    sources = tuple(source for track in drawn for source in track.sources)
    return Picture(key.replace("/", "-"), overlay.title, caption, png, sources)


def _draw(
    axes: Axes, steps: list[int], values: list[float], color: str, line: str, label: str | None, num_tracks: int
) -> None:
    if len(values) < MANY_STEPS:
        size = 4 if num_tracks <= _FEW_TRACKS else 2.5
        axes.plot(steps, values, line, marker="o", markersize=size, linewidth=1.4, color=color, label=label)
        return
    if num_tracks <= _FEW_TRACKS:
        axes.plot(steps, values, "-", color=color, alpha=0.2, linewidth=0.8)
    axes.plot(steps, smooth(values), line, color=color, linewidth=1.6, label=label)


def draw_scores_of_runs(summaries: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Draw the scores of several runs with their intervals, one plot a set.

    Args:
        summaries: ``eval/summary.json`` by run.

    Returns:
        The figure, or None without scores.
    """
    scores: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for run, summary in summaries.items():
        latest, stage = latest_stage(summary)
        for name, each in (("before", summary.get("before") or {}), (latest, stage)):
            for entry in each.get("sets") or []:
                if entry.get("score") is not None:
                    scores.setdefault(entry["label"], {})[run, name] = entry
    if not scores:
        return None
    runs = list(summaries)
    figure, grid = panels(len(scores), columns=2, width=4.6, height=1.2 + 0.26 * len(runs))
    looks = {"before": (GREY, "o"), "after": (BLUE, "s"), "eval": (BLUE, "s")}
    for axes, (label, entries) in zip(grid, scores.items(), strict=True):
        for (run, name), entry in entries.items():
            color, marker = looks[name]
            place, score = runs.index(run) + (0.13 if name == "before" else -0.13), entry["score"]
            whisker = reach(score, entry.get("low"), entry.get("high"))
            axes.errorbar(score, place, xerr=whisker, fmt=marker, color=color, markersize=4, capsize=2, linewidth=1)
        axes.set_yticks(range(len(runs)), [plot_text(run, 32) for run in runs], fontsize=7)
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_title(plot_text(label), fontsize=9)
        axes.set_xlabel("score, 95 % interval", fontsize=8)
        style(axes)
    names = dict.fromkeys(name for entries in scores.values() for _, name in entries)
    for name in names:
        color, marker = looks[name]
        grid[0].plot([], [], marker, color=color, markersize=4, label=name)
    figure_legend(figure, grid[0])
    return figure


def scores_picture(summaries: Mapping[str, Mapping[str, Any]], sources: Sequence[str]) -> Picture | None:
    """Return the picture of :func:`draw_scores_of_runs`."""
    figure = draw_scores_of_runs(summaries)
    if figure is None:
        return None
    caption = "Each run's score before training, where it was measured, and after."
    return Picture("scores", "Scores by run", caption, png_bytes(figure), tuple(sources))
