"""The order of the data: a pure function of (seed, epoch), so that the position in it is one number."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=4)
def permutation(num_examples: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Return the order of one epoch."""
    order = list(range(num_examples))
    random.Random(f"order-{seed}-{epoch}").shuffle(order)
    return tuple(order)


def batch_indices(
    step: int, *, batch_size: int, num_examples: int, seed: int, num_presentations: int | None = None
) -> Sequence[int]:
    """Return the examples of one optimizer step.

    Epochs follow each other without a gap: a batch may span two of them, and nothing is dropped.

    Args:
        step: Index of the step, from 0.
        batch_size: Examples a step.
        num_examples: Examples in the data set.
        seed: Seed of the order.
        num_presentations: Stop the stream after this many; the last batch may then be smaller.
    """
    start = step * batch_size
    end = start + batch_size if num_presentations is None else min(start + batch_size, num_presentations)
    return [
        permutation(num_examples, seed, position // num_examples)[position % num_examples]
        for position in range(start, end)
    ]
