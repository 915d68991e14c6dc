"""95 % intervals, from scipy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000


def wilson_interval(num_correct: int, num_questions: int) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion."""
    from scipy.stats import binomtest  # half a second to import: not before a first step

    interval = binomtest(num_correct, num_questions).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean over questions."""
    return ratio_interval(values, [1.0] * len(values), seed)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of ``sum(numerators) / sum(denominators)``.

    Pairs are resampled together, so tokens of one completion stay in one cluster.
    """
    if len(numerators) < 2:
        ratio = float(np.sum(numerators) / np.sum(denominators))
        return ratio, ratio
    from scipy.stats import bootstrap  # as above

    def ratio_of(top: np.ndarray, bottom: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(top.sum(axis) / bottom.sum(axis))

    interval = bootstrap(
        (np.asarray(numerators), np.asarray(denominators)),
        ratio_of,
        paired=True,
        vectorized=True,
        n_resamples=_NUM_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
