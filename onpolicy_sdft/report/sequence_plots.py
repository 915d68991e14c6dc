"""Pictures of accuracy matrices: heat maps, forgetting, and scores over the stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from onpolicy_sdft.report.drawing import (
    BLACK,
    BLUE,
    CYCLE,
    GREY,
    ORANGE,
    figure_legend,
    from_zero,
    new_figure,
    panels,
    plot_text,
    reach,
    style,
)

Block = Mapping[str, Any]  # {"value", "low", "high"}, each a list of rows
_DARK = 0.55  # from this share of the colour scale on, white text reads better than black


def stage_names(sequence: Mapping[str, Any]) -> list[str]:
    """Name the rows of a sequence's matrices: the base model, then each stage that was trained."""
    return ["base model", *(f"after {stage['label']}" for stage in sequence["stages"])]


def cell(block: Block, row: int, column: int) -> dict[str, float | None]:
    """Return one entry of a matrix with its interval; None for what was not measured."""
    return {key: _entry(block.get(key), row, column) for key in ("value", "low", "high")}


def draw_matrix(sequence: Mapping[str, Any]) -> Figure | None:
    """Draw the accuracy matrix as a heat map, and beside it that of the sets never trained.

    Args:
        sequence: ``sequence.json``.

    Returns:
        The figure, or None without a matrix.
    """
    blocks = [("tasks", sequence["labels"], sequence["matrix"])]
    if sequence.get("retention_labels"):
        blocks.append(("never trained", sequence["retention_labels"], sequence["retention"]))
    rows = stage_names(sequence)[: len(sequence["matrix"]["value"])]
    if not rows:
        return None
    widths = [len(labels) for _, labels, _ in blocks]
    width, height = 1.5 + 1.02 * sum(widths) + 0.2 * len(blocks), 1.0 + 0.52 * len(rows)
    figure = Figure(figsize=(max(4.5, width), height), layout="constrained")
    grid = figure.subplots(1, len(blocks), squeeze=False, sharey=True, width_ratios=widths)[0]
    for axes, (title, labels, block) in zip(grid, blocks, strict=True):
        _heat_map(axes, labels, block, len(rows), sequence.get("n") or {})
        axes.set_title(title, fontsize=9)
    for stage in range(1, len(rows)):
        for column in range(len(sequence["labels"])) if sequence.get("joint") else [stage - 1]:
            grid[0].add_patch(Rectangle((column - 0.48, stage - 0.48), 0.96, 0.96, fill=False, edgecolor=GREY))
    grid[0].set_yticks(range(len(rows)), [plot_text(name) for name in rows], fontsize=8)
    return figure


def draw_forgetting(by_task: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Draw what was forgotten of each task, with intervals.

    Args:
        by_task: ``{"value", "low", "high"}`` by label.

    Returns:
        The figure, or None where nothing was measured.
    """
    known = {label: each for label, each in by_task.items() if each.get("value") is not None}
    if not known:
        return None
    figure, axes = new_figure()
    figure.set_figheight(1.1 + 0.42 * len(known))
    for place, each in enumerate(known.values()):
        value = each["value"]
        axes.barh(place, value, height=0.6, color=ORANGE if value > 0 else BLUE)
        whisker = reach(value, each.get("low"), each.get("high"))
        axes.errorbar(value, place, xerr=whisker, color=BLACK, capsize=3, linewidth=1.2)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_yticks(range(len(known)), [plot_text(label) for label in known], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("best score of the earlier stages - last score, 95 % interval")
    style(axes)
    return figure


def draw_stages(sequence: Mapping[str, Any]) -> Figure:
    """Draw the score on each set over the stages of one sequence, with intervals.

    Args:
        sequence: ``sequence.json``.

    Returns:
        The figure.
    """
    figure, axes = new_figure()
    names = stage_names(sequence)
    blocks = [(sequence["labels"], sequence["matrix"], "-")]
    blocks.append((sequence.get("retention_labels") or [], sequence.get("retention") or {}, "--"))
    number, num_lines = 0, sum(len(labels) for labels, _, _ in blocks)
    for labels, block, line in blocks:
        for column, label in enumerate(labels):
            places, cells = _measured(block, column)
            shifted = [place + 0.06 * (number - (num_lines - 1) / 2) for place in places]
            bars = [reach(*(each[key] for key in ("value", "low", "high"))) for each in cells]
            axes.errorbar(
                shifted,
                [each["value"] for each in cells],
                yerr=[[bar[side][0] for bar in bars] for side in (0, 1)],
                fmt=f"o{line}",
                color=CYCLE[number % len(CYCLE)],
                markersize=4,
                capsize=2,
                linewidth=1.3,
                label=plot_text(label),
            )
            number += 1
    axes.set_xticks(range(len(names)), [plot_text(name) for name in names], fontsize=8)
    axes.set_xlim(-0.4, len(names) - 0.6)
    axes.set_ylabel("score, 95 % interval")
    from_zero(axes)
    style(axes)
    return figure


def draw_stages_of_methods(sequences: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """Draw the score on each set over the stages, one plot a set: each method's mean, and its seeds as dots.

    Args:
        sequences: ``sequence.json`` of each seed, by method.

    Returns:
        The figure, or None without sequences.
    """
    everyone = [sequence for each in sequences.values() for sequence in each]
    sets = dict.fromkeys(
        (key, label)
        for key, names in (("matrix", "labels"), ("retention", "retention_labels"))
        for sequence in everyone
        for label in sequence.get(names) or []
    )
    if not sets:
        return None
    longest = max((stage_names(sequence) for sequence in everyone), key=len)
    figure, grid = panels(len(sets))
    for axes, (key, label) in zip(grid, sets, strict=True):
        for number, (method, each) in enumerate(sequences.items()):
            _method_line(axes, each, key, label, plot_text(method), CYCLE[number % len(CYCLE)])
        axes.set_title(plot_text(label) + ("" if key == "matrix" else " (never trained)"), fontsize=9)
        ticks = [plot_text(name.removeprefix("after "), 12) for name in longest]
        axes.set_xticks(range(len(longest)), ticks, fontsize=8)
        from_zero(axes)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("score")
    figure_legend(figure, grid[0])
    return figure


def _method_line(
    axes: Axes, sequences: Sequence[Mapping[str, Any]], key: str, label: str, name: str, color: str
) -> None:
    """Draw one method in one set's plot: the mean over the seeds that were measured at a stage."""
    names = "labels" if key == "matrix" else "retention_labels"
    values: dict[int, list[float]] = {}
    for sequence in sequences:
        if label in (sequence.get(names) or []):
            places, cells = _measured(sequence[key], sequence[names].index(label))
            for place, each in zip(places, cells, strict=True):
                values.setdefault(place, []).append(float(each["value"] or 0.0))
    places = sorted(values)
    axes.plot(places, [sum(values[p]) / len(values[p]) for p in places], "-", color=color, linewidth=1.6, label=name)
    for place in places:
        axes.plot([place] * len(values[place]), values[place], "o", color=color, markersize=3.5, alpha=0.7)


def _heat_map(axes: Axes, labels: Sequence[str], block: Block, num_rows: int, sizes: Mapping[str, int]) -> None:
    cells = [[cell(block, row, column) for column in range(len(labels))] for row in range(num_rows)]
    values = np.array([[math.nan if c["value"] is None else c["value"] for c in row] for row in cells], dtype=float)
    top = max(1.0, float(np.nanmax(values)) if np.isfinite(values).any() else 1.0)
    axes.imshow(values, cmap="Blues", vmin=0.0, vmax=top, aspect="auto")
    for row, line in enumerate(cells):
        for column, each in enumerate(line):
            value, low, high = each["value"], each["low"], each["high"]
            color = "white" if value is not None and value / top > _DARK else "black"
            text = "-" if value is None else f"{value:.2f}"
            spread = "" if low is None or high is None else f"{low:.2f} to {high:.2f}"
            axes.text(column, row - (0.14 if spread else 0), text, ha="center", va="center", color=color, fontsize=10)
            axes.text(column, row + 0.24, spread, ha="center", va="center", color=color, fontsize=7.5)
    names = [plot_text(label, 14) + (f"\nn = {sizes[label]}" if label in sizes else "") for label in labels]
    axes.set_xticks(range(len(labels)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _measured(block: Block, column: int) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the rows that have a value in a column, and their entries."""
    cells = [cell(block, row, column) for row in range(len(block["value"]))]
    rows = [row for row, each in enumerate(cells) if each["value"] is not None]
    return rows, [cells[row] for row in rows]


def _entry(rows: Any, row: int, column: int) -> float | None:
    if not rows or row >= len(rows) or not rows[row] or column >= len(rows[row]):
        return None
    value = rows[row][column]
    return None if value is None else float(value)
