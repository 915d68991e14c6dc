"""Pictures of scores: before, after and while a run trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onpolicy_sdft.report.drawing import (
    BLACK,
    BLUE,
    CYCLE,
    GREY,
    Record,
    finish,
    from_zero,
    new_figure,
    plot_text,
    reach,
    series,
)
from onpolicy_sdft.report.tables import latest_stage, paired_sets


def draw_scores(metrics: Sequence[Record], summary: Mapping[str, Any]) -> Figure | None:
    """Draw the scores before and after with their 95 % intervals, task and retention apart.

    Args:
        metrics: Not used.
        summary: ``eval/summary.json``.

    Returns:
        The figure, or None without scores.
    """
    latest, scores = latest_stage(summary)
    pairs = paired_sets({"before": summary.get("before"), "after": scores})
    taught = [p for p in pairs if not (p[1] or p[0] or {}).get("retention")]
    retention = [p for p in pairs if (p[1] or p[0] or {}).get("retention")]
    panels = [(name, group) for name, group in (("task (being taught)", taught), ("retention", retention)) if group]
    if not panels:
        return None
    ratios = [len(group) for _, group in panels]
    width = min(14.0, 2.4 + 1.5 * sum(ratios) + len(panels))
    figure = Figure(figsize=(max(5.0, width), 3.8), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=ratios)
    for axes, (name, group) in zip(grid[0], panels, strict=True):
        _score_bars(axes, group, latest)
        axes.set_title(name, fontsize=10)
    grid[0][0].set_ylabel("score, 95 % interval")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def draw_validation(metrics: Sequence[Record], summary: Mapping[str, Any]) -> Figure | None:
    """Draw the scores measured during training.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        summary: Not used.

    Returns:
        The figure, or None where nothing was validated.
    """
    figure, axes = new_figure()
    keys = {key for record in metrics for key in record.get("values") or {}}
    keys = {key for key in keys if key.startswith("eval/") and key.endswith("/score")}
    for number, key in enumerate(sorted(keys)):
        steps, values = series(metrics, key)
        label = key.removeprefix("eval/").removesuffix("/score")
        axes.plot(steps, values, "o-", color=CYCLE[number % len(CYCLE)], label=label)
    if not keys:
        return None
    axes.set_ylabel("score")
    from_zero(axes)
    return finish(figure, axes)


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
