"""PNG curves from ``metrics.jsonl`` and ``eval/summary.json``.

Each drawing function takes what was logged and returns a figure, or None where the run has nothing
to draw. To add a curve, write such a function and list it in ``CURVES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from onpolicy_sdft.report.drawing import (
    BLACK,
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    MANY_STEPS,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Record,
    finish,
    from_zero,
    new_figure,
    plot_metric,
    png_bytes,
    series,
    style,
)
from onpolicy_sdft.report.score_plots import draw_scores, draw_validation

#: Parts of a step and what times them.
PARTS = {
    "rollout": "time/rollout_seconds",
    "screen": "time/screen_seconds",
    "score": "time/score_seconds",
    "learn": "time/learn_seconds",
    "wait": "time/rollout_wait_seconds",
}
PART_COLORS = {"rollout": BLUE, "screen": ORANGE, "score": PURPLE, "learn": GREEN, "wait": SKY, "other": GREY}
MIB_PER_GIB = 1024
MEMORY_CAPTION = "Of the largest rank: on a GPU the peak of each part of the step, on a CPU what was resident after it."
_WORTH_SHOWING = 0.001  # of the whole: a part that takes less is left to the other time


@dataclass(frozen=True, slots=True)
class Curve:
    """One picture of the report."""

    title: str
    caption: str
    draw: Callable[[Sequence[Record], Mapping[str, Any]], Figure | None]


def draw_loss(metrics: Sequence[Record], summary: Mapping[str, Any]) -> Figure | None:
    """Draw the loss per token, with steps that took no update marked below.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        summary: Not used.

    Returns:
        The figure, or None without a loss.
    """
    figure, axes = new_figure()
    if not plot_metric(axes, metrics, "loss/total", "loss", BLUE):
        return None
    skipped = [record["step"] for record in metrics if record.get("skipped")]
    if skipped:
        axes.plot(
            skipped,
            [0.02] * len(skipped),
            "x",
            color=RED,
            label=f"no update (steps: {len(skipped)})",
            transform=axes.get_xaxis_transform(),
        )
    axes.set_ylabel("nats per loss token")
    return finish(figure, axes)


def draw_lengths(metrics: Sequence[Record], summary: Mapping[str, Any]) -> Figure | None:
    """Draw how long rollouts are, and how that compares with the demonstrations.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        summary: Not used.

    Returns:
        The figure, or None without lengths.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    drawn = [
        plot_metric(upper, metrics, "rollout/mean_length", "mean length of rollouts", BLUE),
        plot_metric(lower, metrics, "rollout/length_ratio", "length / demonstration", GREEN),
        plot_metric(lower, metrics, "rollout/truncated_rate", "truncated (share)", RED),
    ]
    if not any(drawn):
        return None
    lower.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    upper.set_ylabel("tokens")
    from_zero(upper)
    lower.set_ylabel("ratio, share")
    from_zero(lower)
    style(upper)
    return finish(figure, lower)


def draw_fallbacks(metrics: Sequence[Record], summary: Mapping[str, Any]) -> Figure | None:
    """Draw the share of rollouts that were not learned, in all and by reason.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        summary: Not used.

    Returns:
        The figure, or None without screening figures.
    """
    figure, axes = new_figure()
    drawn = [
        plot_metric(axes, metrics, "screen/fallback_rate", "fallback (all reasons)", BLACK),
        plot_metric(axes, metrics, "screen/drop_rate", "drop (all reasons)", GREY, skip_zero=True),
    ]
    prefix, suffix = "screen/reason/", "_rate"
    keys = {key for record in metrics for key in record.get("values") or {}}
    reasons = sorted(key for key in keys if key.startswith(prefix) and key.endswith(suffix))
    for number, key in enumerate(reasons):
        name = key.removeprefix(prefix).removesuffix(suffix).replace("_", " ")
        color = CYCLE[number % 6]
        drawn.append(plot_metric(axes, metrics, key, name, color, linestyle="--", skip_zero=True))
    if not any(drawn):
        return None
    axes.set_ylabel("share of rollouts")
    from_zero(axes)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return finish(figure, axes)


def draw_time(metrics: Sequence[Record], summary: Mapping[str, Any]) -> Figure | None:
    """Draw what the seconds of each step were spent on, stacked.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        summary: Not used.

    Returns:
        The figure, or None without times.
    """
    timed = [r for r in metrics if (r.get("values") or {}).get("time/step_seconds") is not None]
    if not timed:
        return None
    figure, axes = new_figure()
    steps = [record["step"] for record in timed]
    totals = [record["values"]["time/step_seconds"] for record in timed]
    split = {n: [r["values"].get(k) or 0.0 for r in timed] for n, k in PARTS.items()}
    split = {name: values for name, values in split.items() if sum(values) >= _WORTH_SHOWING * sum(totals)}
    known = [sum(parts) for parts in zip(*split.values(), strict=True)] if split else [0.0] * len(totals)
    split["other"] = [max(0.0, t - k) for t, k in zip(totals, known, strict=True)]
    whole = sum(sum(values) for values in split.values()) or 1.0
    bottom = [0.0] * len(steps)
    for name, values in split.items():
        color = PART_COLORS[name]
        label = f"{name} ({sum(values) / whole:.0%})"
        top = [b + v for b, v in zip(bottom, values, strict=True)]
        if len(steps) < MANY_STEPS:
            axes.bar(steps, values, bottom=bottom, width=0.8, color=color, label=label)
        else:
            axes.fill_between(steps, bottom, top, step="mid", color=color, linewidth=0, label=label)
        bottom = top
    axes.set_ylabel("seconds per step")
    from_zero(axes)
    return finish(figure, axes)


def draw_diversity(metrics: Sequence[Record], summary: Mapping[str, Any]) -> Figure | None:
    """Draw the signs of collapse: entropy, distinct bigrams, and copying of the demonstration.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        summary: Not used.

    Returns:
        The figure, or None without them.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    drawn = [
        plot_metric(upper, metrics, "rollout/entropy", "mean token entropy", PURPLE),
        plot_metric(lower, metrics, "rollout/distinct_2", "distinct-2", BLUE),
        plot_metric(lower, metrics, "rollout/demonstration_overlap", "overlap with demonstration", ORANGE),
        plot_metric(lower, metrics, "rollout/verbatim_rate", "verbatim copies", RED, skip_zero=True),
    ]
    if not any(drawn):
        return None
    upper.set_ylabel("nats")
    from_zero(upper)
    lower.set_ylabel("share")
    lower.set_ylim(0, 1.05)
    style(upper)
    return finish(figure, lower)


def draw_surprise(metrics: Sequence[Record], summary: Mapping[str, Any]) -> Figure | None:
    """Draw what the bare prompt makes of the rollouts.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        summary: Not used.

    Returns:
        The figure, or None where rollouts were not measured.
    """
    figure, axes = new_figure()
    drawn = [
        plot_metric(axes, metrics, "rollout/surprise", "surprise of rollouts", BLUE),
        plot_metric(axes, metrics, "bare/surprise", "surprise of bare answers", GREY, linestyle="--"),
        plot_metric(axes, metrics, "rollout/leak", "leak of rollouts", ORANGE),
    ]
    if not any(drawn[::2]):
        return None
    axes.axhline(0.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_ylabel("nats a token")
    return finish(figure, axes)


def draw_memory(metrics: Sequence[Record], summary: Mapping[str, Any]) -> Figure | None:
    """Draw the memory that was logged.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        summary: Not used.

    Returns:
        The figure, or None where memory was not logged.
    """
    keys = memory_keys(metrics)
    if not keys:
        return None
    figure, axes = new_figure()
    for number, key in enumerate(keys):
        steps, values = series(metrics, key)
        marker, color = "o" if len(steps) < MANY_STEPS else "", CYCLE[number % len(CYCLE)]
        sizes = [value / MIB_PER_GIB for value in values]
        axes.plot(steps, sizes, marker=marker, markersize=4, color=color, label=memory_part(key))
    axes.set_ylabel("GiB")
    from_zero(axes)
    return finish(figure, axes)


def memory_keys(metrics: Sequence[Record]) -> list[str]:
    """List the metrics that are memory.

    Args:
        metrics: Lines of ``metrics.jsonl``.

    Returns:
        Keys of the form ``memory/PART_mib``, in the order they were logged.
    """
    keys = dict.fromkeys(key for record in metrics for key in record.get("values") or {})
    return [key for key in keys if key.startswith("memory/") and key.endswith("_mib")]


def memory_part(key: str) -> str:
    """Name the part of a step whose memory a metric is.

    Args:
        key: One of :func:`memory_keys`.

    Returns:
        E.g. ``rollout``.
    """
    return key.removeprefix("memory/").removesuffix("_mib").replace("_", " ")


CURVES: Mapping[str, Curve] = {
    "scores": Curve(
        "Score before and after",
        "Retention sets hold what the base model could do before: they should not fall.",
        draw_scores,
    ),
    "loss": Curve("Loss", "Negative log-likelihood of the targets, bare prompt.", draw_loss),
    "validation": Curve("Score during training", "On the validation sets.", draw_validation),
    "fallbacks": Curve(
        "Fallbacks by reason",
        "Rollouts that were not learned; the demonstration was, or nothing.",
        draw_fallbacks,
    ),
    "lengths": Curve("Lengths", "A ratio that climbs means that answers grow away from the data.", draw_lengths),
    "diversity": Curve("Entropy and variety", "A steady fall of either is a sign of collapse.", draw_diversity),
    "surprise": Curve(
        "Surprise and leak",
        "How unlikely rollouts are under the bare prompt, and how much likelier the demonstration alone makes them. "
        "Shortcuts and copies are far above the policy's own bare answers.",
        draw_surprise,
    ),
    "time": Curve("Time", "Where the seconds of a step went.", draw_time),
    "memory": Curve("Memory", MEMORY_CAPTION, draw_memory),
}


def draw_curves(metrics: Sequence[Record], summary: Mapping[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """Draw every curve the run has data for.

    Args:
        metrics: Lines of ``metrics.jsonl``; may be empty.
        summary: ``eval/summary.json``; may be empty.

    Returns:
        PNG files by name (keys of ``CURVES``), and titles of the curves without data.
    """
    pictures, missing = {}, []
    for name, curve in CURVES.items():
        figure = curve.draw(metrics, summary)
        if figure is None:
            missing.append(curve.title)
        else:
            pictures[name] = png_bytes(figure)
    return pictures, missing
