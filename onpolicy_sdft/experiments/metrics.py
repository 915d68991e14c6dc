"""What a sequence of tasks taught, and what it cost: pure functions of the accuracy matrix.

A[i, j] is the score on task j after i stages; row 0 is the base model, column j is trained in stage j + 1. Further axes
(resamples) are carried along.

Shape letters: T tasks, R sets that are never trained, E examples of a set, then whatever there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array, Array], Array]

CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000


def average_accuracy(scores: Array) -> Array:
    """Return the mean score over all tasks after the last stage: [T + 1, T, ...] -> [...].

    Source: ACC of Lopez-Paz and Ranzato (2017), arXiv:1706.08840, equation 2.
    """
    return np.asarray(scores[-1].mean(axis=0))


def backward_transfer(scores: Array) -> Array:
    """Return how earlier tasks changed since each was learned; below 0 they were forgotten: [T + 1, T, ...] -> [...].

    ``mean over j < T of A[T, j] - A[j, j]``; 0 for one task.

    Source: BWT of Lopez-Paz and Ranzato (2017), arXiv:1706.08840, equation 3.
    """
    last = scores.shape[1] - 1
    if last < 1:
        return np.zeros(scores.shape[2:])
    return np.asarray(np.mean([scores[-1, j] - scores[j + 1, j] for j in range(last)], axis=0))


def forward_transfer(scores: Array) -> Array:
    """Return what earlier stages did for tasks before these were trained: [T + 1, T, ...] -> [...].

    ``mean over j > 1 of A[j - 1, j] - A[0, j]``; the published definition compares with a random model, ours with the
    base model, which is where a sequence starts. 0 for one task.

    Source: FWT of Lopez-Paz and Ranzato (2017), arXiv:1706.08840, equation 4.
    """
    num_tasks = scores.shape[1]
    if num_tasks < 2:
        return np.zeros(scores.shape[2:])
    return np.asarray(np.mean([scores[j, j] - scores[0, j] for j in range(1, num_tasks)], axis=0))


def forgetting_by_task(scores: Array) -> Array:
    """Return each earlier task's best score before the last stage minus its last: [T + 1, T, ...] -> [T - 1, ...].

    Stages before the task was trained count as well, the base model does not. Negative: it got better.

    Source: f of Chaudhry et al. (2018), arXiv:1801.10112, equation 3.
    """
    return np.asarray(scores[1:-1, :-1].max(axis=0) - scores[-1, :-1])


def forgetting(scores: Array) -> Array:
    """Return the mean of :func:`forgetting_by_task`: [T + 1, T, ...] -> [...]; 0 for one task.

    Source: F of Chaudhry et al. (2018), arXiv:1801.10112, equation 3.
    """
    if scores.shape[1] < 2:
        return np.zeros(scores.shape[2:])
    return np.asarray(forgetting_by_task(scores).mean(axis=0))


def acquisition(scores: Array) -> Array:
    """Return what tasks gained in their own stages: mean of ``A[j, j] - A[j - 1, j]``: [T + 1, T, ...] -> [...]."""
    return np.asarray(np.mean([scores[j + 1, j] - scores[j, j] for j in range(scores.shape[1])], axis=0))


def intransigence(scores: Array, ceiling: Array) -> Array:
    """Return how far tasks right after their stage stay behind joint training: [T + 1, T, ...], [T, ...] -> [...].

    Source: I of Chaudhry et al. (2018), arXiv:1801.10112, definition 2, averaged over tasks.
    """
    own = np.stack([scores[j + 1, j] for j in range(scores.shape[1])])
    return np.asarray((ceiling - own).mean(axis=0))


def retention_change(retained: Array) -> Array:
    """Return the change of the sets that are never trained, base model to last stage: [T + 1, R, ...] -> [...]."""
    if retained.shape[1] == 0:
        return np.zeros(retained.shape[2:])
    return np.asarray((retained[-1] - retained[0]).mean(axis=0))


#: Metric -> function of (scores [T + 1, T, ...], retained [T + 1, R, ...]).
METRICS: Mapping[str, Statistic] = {
    "average_accuracy": lambda scores, retained: average_accuracy(scores),
    "acquisition": lambda scores, retained: acquisition(scores),
    "forgetting": lambda scores, retained: forgetting(scores),
    "backward_transfer": lambda scores, retained: backward_transfer(scores),
    "forward_transfer": lambda scores, retained: forward_transfer(scores),
    "retention_change": lambda scores, retained: retention_change(retained),
}
#: Of joint training there is one stage, so nothing is learned after anything else.
JOINT_METRICS = ("average_accuracy", "retention_change")


def matrix(correct: Sequence[Array]) -> Array:
    """Return the accuracy matrix of per-example records: of each set [T + 1, ..., E] -> [T + 1, sets, ...]."""
    return np.stack([records.mean(axis=-1) for records in correct], axis=1)


def paired_interval(
    correct: Sequence[Array], retained: Sequence[Array], statistic: Statistic, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a metric, over the examples of each set.

    Examples are resampled together over all stages and whatever other axes there are (seeds, methods), since all were
    scored on the same ones.

    Args:
        correct: Records [T + 1, ..., E] of each task.
        retained: Records [T + 1, ..., E] of each set that is never trained.
        statistic: Function of scores [T + 1, T, ..., resamples] and retained [T + 1, R, ..., resamples] that leaves
            resamples only.
        seed: Of the resampling.

    Returns:
        The bounds; not a number where a set has a single example.
    """
    if min(records.shape[-1] for records in (*correct, *retained)) < 2:
        return float("nan"), float("nan")
    from scipy.stats import bootstrap  # half a second to import: not before a first stage

    num_tasks = len(correct)

    def of_resample(*records: Array, axis: int = -1) -> Array:
        means = [np.asarray(each.mean(axis=axis)) for each in records]
        empty = np.zeros((means[0].shape[0], 0, *means[0].shape[1:]))
        held = np.stack(means[num_tasks:], axis=1) if len(means) > num_tasks else empty
        return np.asarray(statistic(np.stack(means[:num_tasks], axis=1), held))

    found = bootstrap(
        [*correct, *retained],
        of_resample,
        axis=-1,
        vectorized=True,
        n_resamples=_NUM_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(np.asarray(found.low)), float(np.asarray(found.high))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> dict[str, float]:
    """Compare two methods on the same questions by those that only one of them gets right.

    Returns:
        ``only_a``, ``only_b``, ``n`` and the two-sided exact ``p`` (1 where they never differ).

    Source: McNemar (1947), exact form: the discordant questions are a fair coin's throws if neither is better.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} and {b.size} answers are not to the same questions")
    from scipy.stats import binomtest  # as above

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "n": int(a.size), "p": p}
