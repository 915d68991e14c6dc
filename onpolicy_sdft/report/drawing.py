"""Drawing one logged metric, and the look all curves share."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Record = Mapping[str, Any]

# Okabe and Ito's palette: told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, BLACK = "#CC79A7", "#56B4E9", "#999999", "#000000"
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK, GREY)
LINES = ("-", "--", ":", "-.")
MANY_STEPS = 30  # from here on curves are smoothed and drawn without markers
_LEGEND_CHARACTERS = 110  # of a legend's row, line samples and gaps included


def look_of(number: int) -> tuple[str, str]:
    """Return the colour and the line of the curve with this number."""
    return CYCLE[number % len(CYCLE)], LINES[number // len(CYCLE) % len(LINES)]


def series(metrics: Sequence[Record], key: str) -> tuple[list[int], list[float]]:
    """Pick one metric out of the log.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        key: Metric, ``area/quantity``.

    Returns:
        Steps that have the metric, and its values; NaN where ``null`` was logged.
    """
    steps, values = [], []
    for record in metrics:
        if key in (record.get("values") or {}):
            value = record["values"][key]
            steps.append(record["step"])
            values.append(math.nan if value is None else float(value))
    return steps, values


def png_bytes(figure: Figure) -> bytes:
    """Render a figure.

    Args:
        figure: The figure.

    Returns:
        A PNG file.
    """
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def new_figure() -> tuple[Figure, Axes]:
    """Make a figure with one plot, outside pyplot's global state.

    Returns:
        The figure and its axes.
    """
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    return figure, figure.subplots()


def plot_line(
    axes: Axes,
    steps: Sequence[int],
    values: Sequence[float],
    label: str | None,
    color: str,
    line: str = "-",
    *,
    size: float = 4,
    faint: bool = True,
) -> None:
    """Draw a metric over the steps: points while they are few, else a smoothed curve.

    Args:
        axes: Where to.
        steps: Where it was logged.
        values: What was logged; NaN is a gap.
        label: Name in the legend; None: not named.
        color: Of the curve.
        line: Its style, as matplotlib names it.
        size: Of the points.
        faint: Whether what was smoothed is drawn faintly, too.
    """
    if len(values) < MANY_STEPS:
        axes.plot(steps, values, line, marker="o", markersize=size, color=color, label=label)
        return
    if faint:
        axes.plot(steps, values, "-", color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(values), line, color=color, linewidth=1.8, label=label)


def smooth(values: Sequence[float]) -> list[float]:
    """Take the running mean over a tenth of the curve, centred, leaving gaps out.

    Towards the ends the window shrinks on both sides alike, so that a curve that starts steep is
    not drawn flat there.

    Args:
        values: The curve; NaN is a gap.

    Returns:
        As many values; NaN only where a whole window is a gap.
    """
    reach = max(1, len(values) // 20)
    means = []
    for i in range(len(values)):
        here = min(reach, i, len(values) - 1 - i)
        window = [v for v in values[i - here : i + here + 1] if math.isfinite(v)]
        means.append(sum(window) / len(window) if window else math.nan)
    return means


def plot_text(text: Any, limit: int = 24) -> str:
    """Make a name fit for a plot: not too long, and no formula however many dollars it holds.

    Args:
        text: The name.
        limit: Most characters to keep.

    Returns:
        The name as matplotlib is to be given it.
    """
    name = str(text).encode("utf-8", "replace").decode()
    name = name if len(name) <= limit else f"{name[: limit - 1]}…"
    return name.replace("$", "\\$")


def style(axes: Axes) -> None:
    """Give a plot its grid and legend.

    Args:
        axes: The plot.
    """
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        widest = max(len(label) for label in labels)
        # Above the plot, where it covers no data.
        axes.legend(
            frameon=False,
            fontsize=8,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.2,
            ncols=max(1, min(4, _LEGEND_CHARACTERS // (widest + 8))),
        )


def panels(number: int, *, columns: int = 3, width: float = 3.6, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """Make a figure of several plots of one size.

    Args:
        number: How many.
        columns: At most in a row.
        width: Of one, in inches.
        height: Of one, in inches.

    Returns:
        The figure and its plots, row by row.
    """
    across = 2 if number == 4 else min(columns, number)  # four fill a square
    down = -(-number // across)
    figure = Figure(figsize=(max(5.0, width * across), height * down), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in grid[number:]:
        figure.delaxes(axes)
    for axes in grid[:number]:
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure, grid[:number]


def figure_legend(figure: Figure, axes: Axes) -> None:
    """Give a figure of several plots one legend, below them.

    Args:
        figure: The figure.
        axes: The plot that has what the legend names.
    """
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        room = int(figure.get_figwidth() * _LEGEND_CHARACTERS / 7.2)
        ncols = max(1, min(len(labels), room // (max(len(label) for label in labels) + 8)))
        figure.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False, fontsize=8)


def reach(value: float, low: float | None, high: float | None) -> list[list[float]]:
    """Return the lengths of an error bar, as matplotlib takes them; none where there is no interval.

    Args:
        value: Where the bar starts.
        low: Lower end.
        high: Upper end.

    Returns:
        ``[[down], [up]]``.
    """
    down = 0.0 if low is None else max(0.0, value - low)
    up = 0.0 if high is None else max(0.0, high - value)
    return [[down], [up]]


def from_zero(axes: Axes) -> None:
    """Start the upright axis at zero, with room above the highest point.

    Args:
        axes: The plot, drawn.
    """
    axes.set_ylim(0, axes.get_ylim()[1] * 1.04)


def finish(figure: Figure, axes: Axes) -> Figure:
    """Style the lowest plot of a figure and label its steps.

    Args:
        figure: The figure.
        axes: Its lowest plot.

    Returns:
        The figure.
    """
    style(axes)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
