"""Few shapes: the counts that rows of a forward are rounded up to, so that memory stays flat over thousands of steps.

Every new row count makes oneDNN compile and keep a kernel for each linear (a megabyte each in bfloat16), leaves the
allocators another hole, and on a GPU asks for another graph. So packed tokens of prefill, decode, learning and
scoring, the lengths of padded rows and of texts that are attended one by one, and chunks of the head are all padded to
a count of :func:`round_up`. Padding attends itself only, is in no loss and in no count of tokens, and its share is
logged (``train/padding_rate``, ``rollout/padding_rate``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def round_up(count: int, most: int | None = None, *, an_octave: int = 4) -> int:
    """Return the smallest count of the set that is at least ``count``.

    The set has ``an_octave`` counts from each power of two to the next, from 16 on; below, it goes on in the steps
    between 16 and 32, and within the first of them in powers of two. With 4: 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40,
    48, 56, 64, 80, ..., 896, 1024, 1280, ...: at most a quarter of padding from 16 on, and 30 counts up to 1024.

    Args:
        count: Tokens or rows; 0 stays 0.
        most: What padding must not go beyond: a bound that is in the set as well. A count above it stays as it is.
        an_octave: 1, 2, 4 or 8.
    """
    if count <= 0:
        return 0
    octave = 1 << (count - 1).bit_length()  # the power of two from ``count`` on
    step = max(octave // 2, 16) // an_octave
    rounded = octave if octave <= step else -(-count // step) * step
    return rounded if most is None or rounded <= most else max(count, most)


def pieces(count: int, longest: int) -> list[int]:
    """Cut padding into texts that are no longer than the real ones: no position is new to the model."""
    return [min(longest, count - first) for first in range(0, count, longest)]


def pad_rows(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor with rows of zeros behind its own, so that their number is one of few; no gradient."""
    missing = round_up(len(x)) - len(x)
    if not missing:
        return x
    padded = x.new_zeros(len(x) + missing, *x.shape[1:])
    padded[: len(x)] = x
    return padded
