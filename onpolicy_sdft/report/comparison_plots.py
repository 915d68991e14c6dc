"""Pictures of methods side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onpolicy_sdft.report.drawing import (
    BLACK,
    CYCLE,
    GREY,
    figure_legend,
    from_zero,
    new_figure,
    panels,
    plot_text,
    reach,
    style,
)

Rows = Sequence[Mapping[str, Any]]
_LOST = {"forgetting": "forgetting of trained tasks", "retention_change": "change of sets never trained"}


def figure_of(row: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Return a metric of a row with its interval, or None where it has none."""
    found = (row.get("metrics") or {}).get(name)
    return found if found and found.get("value") is not None else None


def draw_metrics(rows: Rows, methods: Sequence[str], names: Sequence[str]) -> Figure | None:
    """Draw each metric of each method: a dot with its interval a seed, and a bar at the mean over seeds.

    Args:
        rows: Of ``comparison.json``, those to draw.
        methods: In order.
        names: Of the metrics.

    Returns:
        The figure, or None without figures.
    """
    shown = [name for name in names if any(figure_of(row, name) for row in rows)]
    if not shown:
        return None
    figure, grid = panels(len(shown))
    for axes, name in zip(grid, shown, strict=True):
        for place, method in enumerate(methods):
            found = [figure_of(row, name) for row in rows if row.get("method") == method]
            known = [each for each in found if each]
            color = CYCLE[place % len(CYCLE)]
            for number, each in enumerate(known):
                x = place + 0.14 * (number - (len(known) - 1) / 2)
                whisker = reach(each["value"], each.get("low"), each.get("high"))
                axes.errorbar(x, each["value"], yerr=whisker, fmt="o", color=color, markersize=4, capsize=2)
            if known:
                middle = sum(each["value"] for each in known) / len(known)
                axes.plot([place - 0.35, place + 0.35], [middle, middle], color=BLACK, linewidth=1.2)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_xticks(range(len(methods)), [plot_text(method, 14) for method in methods], fontsize=8, rotation=20)
        axes.set_xlim(-0.6, len(methods) - 0.4)
        axes.set_title(name.replace("_", " "), fontsize=9)
        style(axes)
    return figure


def draw_trade(rows: Rows, methods: Sequence[str]) -> Figure | None:
    """Draw what was learned against what was lost, a point a method and seed.

    Args:
        rows: Of ``comparison.json``, those to draw.
        methods: In order.

    Returns:
        The figure, or None where a row has not both.
    """
    shown = [name for name in _LOST if any(figure_of(row, name) and figure_of(row, "acquisition") for row in rows)]
    if not shown:
        return None
    figure, grid = panels(len(shown), columns=2, width=4.4, height=3.6)
    for axes, name in zip(grid, shown, strict=True):
        for number, method in enumerate(methods):
            _trade_points(axes, [row for row in rows if row.get("method") == method], name, method, number)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_xlabel(_LOST[name])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("gain on a task in its own stage")
    figure_legend(figure, grid[0])
    return figure


def _trade_points(axes: Axes, rows: Rows, name: str, method: str, number: int) -> None:
    color, marker = CYCLE[number % len(CYCLE)], "osD^vPX*"[number % 8]
    label: str | None = plot_text(method)
    for row in rows:
        lost, learned = figure_of(row, name), figure_of(row, "acquisition")
        if not lost or not learned:
            continue
        x, y = lost["value"], learned["value"]
        xerr, yerr = (reach(each["value"], each.get("low"), each.get("high")) for each in (lost, learned))
        axes.errorbar(x, y, xerr=xerr, yerr=yerr, fmt="none", color=color, alpha=0.3, linewidth=0.9)
        axes.plot(x, y, marker, color=color, markersize=6, label=label)
        axes.annotate(str(row.get("seed", "")), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
        label = None


def draw_tuning(tuning: Rows, methods: Sequence[str]) -> Figure | None:
    """Draw the score of every learning rate that was tried; chosen ones are ringed.

    Args:
        tuning: Of ``comparison.json``.
        methods: In order.

    Returns:
        The figure, or None where nothing was tuned.
    """
    known = [row for row in tuning if row.get("score") is not None and row.get("lr")]
    if not known:
        return None
    figure, axes = new_figure()
    for number, method in enumerate(methods):
        mine = sorted((row for row in known if row["method"] == method), key=lambda row: row["lr"])
        color = CYCLE[number % len(CYCLE)]
        label = plot_text(method)
        axes.plot([r["lr"] for r in mine], [r["score"] for r in mine], "o-", color=color, markersize=4, label=label)
        for row in mine:
            if row.get("chosen"):
                axes.plot(row["lr"], row["score"], "o", mfc="none", mec=color, markersize=11)
    rates = sorted({row["lr"] for row in known})
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.set_xlabel("learning rate")
    axes.set_ylabel("score on validation")
    from_zero(axes)
    style(axes)
    return figure
