"""Pictures of scores before and after, of one run and of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onpolicy_sdft.report.document import Picture
from onpolicy_sdft.report.drawing import (
    BLACK,
    BLUE,
    GREY,
    Record,
    figure_legend,
    panels,
    plot_text,
    png_bytes,
    reach,
    style,
)
from onpolicy_sdft.report.tables import latest_stage, paired_sets


def draw_scores(summary: Mapping[str, Any]) -> Figure | None:
    """Draw the scores before and after with their 95 % intervals, task and retention apart.

    Args:
        summary: ``eval/summary.json``.

    Returns:
        The figure, or None without scores.
    """
    latest, scores = latest_stage(summary)
    pairs = paired_sets({"before": summary.get("before"), "after": scores})
    taught = [p for p in pairs if not (p[1] or p[0] or {}).get("retention")]
    retention = [p for p in pairs if (p[1] or p[0] or {}).get("retention")]
    sides = [(name, group) for name, group in (("task (being taught)", taught), ("retention", retention)) if group]
    if not sides:
        return None
    ratios = [len(group) for _, group in sides]
    width = min(14.0, 2.4 + 1.5 * sum(ratios) + len(sides))
    figure = Figure(figsize=(max(5.0, width), 3.8), layout="constrained")
    grid = figure.subplots(1, len(sides), sharey=True, squeeze=False, width_ratios=ratios)
    for axes, (name, group) in zip(grid[0], sides, strict=True):
        _score_bars(axes, group, latest)
        axes.set_title(name, fontsize=10)
    grid[0][0].set_ylabel("score, 95 % interval")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


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


def _score_bars(axes: Axes, pairs: Sequence[tuple[Record | None, Record | None]], latest: str) -> None:
    for side, (name, color) in enumerate((("before", GREY), (latest, BLUE))):
        for place, pair in enumerate(pairs):
            entry = pair[side]
            if entry is None or entry.get("score") is None:
                continue
            x, score = place + (side - 0.5) * 0.38, entry["score"]
            axes.bar(x, score, width=0.36, color=color)
            top = score
            if entry.get("low") is not None and entry.get("high") is not None:
                whisker = reach(score, entry["low"], entry["high"])
                axes.errorbar(x, score, yerr=whisker, color=BLACK, capsize=3, linewidth=1.2)
                top = max(score, entry["high"])
            axes.annotate(
                f"{score:.2f}",
                (x, top),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.bar(0, 0, color=color, label=name)  # one entry of the legend a side, data or none
    axes.set_xticks(range(len(pairs)), [_label(pair) for pair in pairs], fontsize=8)
    axes.set_xlim(-0.6, len(pairs) - 0.4)
    axes.set_ylim(0, max(1.1, axes.get_ylim()[1]))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label(pair: tuple[Record | None, Record | None]) -> str:
    entry = pair[1] or pair[0] or {}
    return f"{plot_text(entry.get('label', ''), 20)}\nn = {entry.get('n', '-')}"
