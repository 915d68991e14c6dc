"""Pictures of a sweep: each metric along one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onpolicy_sdft.experiments.sweep_results import plain_text, short_name
from onpolicy_sdft.report.drawing import CYCLE, figure_legend, look_of, panels, plot_text

Rows = Sequence[Mapping[str, Any]]

MAX_GROUPS = len(CYCLE)  # combinations of the other axes that are told apart
_MANY_TIMES = 50.0  # a numeric axis whose largest value is so many times its smallest is drawn in logarithms
_CLOSE = 0.06  # of the axis: ticks nearer than this would overlap


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether an axis has an order: numbers only, and at least two of them."""
    return len(values) > 1 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def is_logarithmic(field: str, values: Sequence[float]) -> bool:
    """Whether to draw an axis in logarithms: learning rates, and what spans many times its smallest value."""
    if min(values) <= 0:
        return False
    return field.rpartition(".")[2] in ("lr", "learning_rate") or max(values) / min(values) >= _MANY_TIMES


def draw_axis(field: str, axes_of_sweep: Mapping[str, Sequence[Any]], table: Rows, metrics: Sequence[str]) -> Figure:
    """Draw metrics along one axis, a plot a metric; combinations of the other axes are told apart by colour.

    Args:
        field: The axis.
        axes_of_sweep: Values by field.
        table: Of ``sweep.json``: a row a point.
        metrics: What to draw.

    Returns:
        The figure.
    """
    values = list(axes_of_sweep[field])
    others = [other for other in axes_of_sweep if other != field]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in table:
        name = ", ".join(f"{_last(other)} {plain_text(row['point'].get(other))}" for other in others)
        groups.setdefault(name, []).append(row)
    if len(groups) > MAX_GROUPS:
        groups = {"": list(table)}
    figure, grid = panels(len(metrics))
    for axes, metric in zip(grid, metrics, strict=True):
        for number, (name, rows) in enumerate(groups.items()):
            points = [(row["point"][field], row["scores"][metric]) for row in rows if metric in row["scores"]]
            offset = 0.5 * (number - (len(groups) - 1) / 2) / max(1, len(groups))
            color, line = look_of(number)
            label = plot_text(name, 40) or None
            if is_numeric(values):
                _line(axes, points, color, line, label)
            else:
                _dots(axes, points, [plain_text(value) for value in values], offset, color, label)
        _ticks(axes, field, values)
        axes.set_title(plot_text(short_name(metric), 40), fontsize=9)
        axes.set_xlabel(plot_text(field, 40), fontsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if len(groups) > 1:
        figure_legend(figure, grid[0])
    return figure


def _line(
    axes: Axes, points: Sequence[tuple[float, Mapping[str, Any]]], color: str, line: str, label: str | None
) -> None:
    """Draw the mean over all that share a value, and every run as a dot with the range shaded."""
    by_value: dict[float, list[float]] = {}
    for value, score in points:
        by_value.setdefault(value, []).extend(_values(score))
    places = sorted(by_value)
    if not places:
        return
    means = [sum(by_value[place]) / len(by_value[place]) for place in places]
    axes.plot(places, means, line, color=color, linewidth=1.5, label=label)
    axes.fill_between(
        places,
        [min(by_value[p]) for p in places],
        [max(by_value[p]) for p in places],
        color=color,
        alpha=0.12,
        linewidth=0,
    )
    for place in places:
        axes.plot([place] * len(by_value[place]), by_value[place], "o", color=color, markersize=3.5, alpha=0.8)


def _dots(
    axes: Axes,
    points: Sequence[tuple[Any, Mapping[str, Any]]],
    names: Sequence[str],
    offset: float,
    color: str,
    label: str | None,
) -> None:
    """Draw every run as a dot, with a bar at the mean and a line over the range."""
    by_place: dict[int, list[float]] = {}
    for value, score in points:
        by_place.setdefault(names.index(plain_text(value)), []).extend(_values(score))
    for place, values in by_place.items():
        x, middle = place + offset, sum(values) / len(values)
        axes.plot([x] * len(values), values, "o", color=color, markersize=3.5, alpha=0.8, label=label)
        axes.plot([x, x], [min(values), max(values)], color=color, linewidth=1)
        axes.plot([x - 0.12, x + 0.12], [middle, middle], color=color, linewidth=1.8)
        label = None


def _ticks(axes: Axes, field: str, values: Sequence[Any]) -> None:
    if not is_numeric(values):
        names = [plot_text(plain_text(value), 16) for value in values]
        turn = 25 if sum(map(len, names)) > 32 else 0
        axes.set_xticks(range(len(values)), names, fontsize=8, rotation=turn, ha="right" if turn else "center")
        axes.set_xlim(-0.6, len(values) - 0.4)
        return
    places = sorted(set(values))
    if is_logarithmic(field, places):
        axes.set_xscale("log")
        axes.minorticks_off()
    else:
        widest = max(places) - min(places)
        if min(b - a for a, b in pairwise(places)) < _CLOSE * widest:
            return
    axes.set_xticks(places, [plain_text(float(place)) for place in places], fontsize=8)


def _values(score: Mapping[str, Any]) -> list[float]:
    """Return the runs' values behind a cell of the table, or its mean where they were not kept."""
    found = [float(value) for value in score.get("values") or [] if value is not None]
    return found or ([float(score["mean"])] if score.get("mean") is not None else [])


def _last(field: str) -> str:
    return field.rpartition(".")[2]
