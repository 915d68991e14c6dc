"""What the score of an evaluation set is called among metrics."""

from __future__ import annotations

from collections.abc import Mapping


def score_metric(label: str) -> str:
    """Return the name of a set's score among metrics."""
    return f"eval/{label}/score"


def label_of(metric: str) -> str | None:
    """Return the label of the set whose score a metric is; None: it is another metric."""
    label = metric.removeprefix("eval/").removesuffix("/score")
    return label if metric == score_metric(label) else None


def scores_by_label(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the scores among metrics by the label of their set."""
    return {label: value for name, value in metrics.items() if (label := label_of(name)) is not None}
