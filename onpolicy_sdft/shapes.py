"""Few shapes: the counts that rows of a forward are rounded up to, so that memory stays flat over thousands of steps.

Every new row count makes oneDNN compile and keep a kernel for each linear (up to a megabyte each in bfloat16), leaves
the allocators another hole, and on a GPU asks for another graph. So counts of tokens (packed prefill, learning,
scoring; the lengths of padded rows, and of texts that are attended one by one; chunks of the head) are padded to those
of :func:`round_tokens`, and counts of texts (rows that decode, rows of padded micro-batches) to those of
:func:`round_rows`. Padding attends itself only, is in no loss and in no count of tokens, and its share is logged
(``train/padding_rate``, ``rollout/padding_rate``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TOKENS = 32  # least step of token counts: what a small forward gains from fewer is less than a kernel costs


def round_tokens(count: int, most: int | None = None) -> int:
    """Return the smallest token count of the set that is at least ``count``.

    The set: multiples of 32 up to 256, then four counts from each power of two to the next (320, 384, 448, 512, 640,
    ..., 1024, 1280, ...): 16 up to 1024, and from 128 on less than a quarter is padding.

    Args:
        count: Of tokens; 0 stays 0.
        most: What padding must not go beyond: a bound that is in the set as well. A count above it stays as it is.
    """
    if count <= 0:
        return 0
    step = max(_TOKENS, _octave(count) // 8)
    rounded = -(-count // step) * step
    return rounded if most is None or rounded <= most else max(count, most)


def round_rows(count: int, an_octave: int = 4) -> int:
    """Return the smallest count of rows of the set that is at least ``count``.

    The set has ``an_octave`` counts from each power of two to the next, from 16 on; below, it goes on in the steps
    between 16 and 32, and within the first of them in powers of two. With 4: 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40.

    Args:
        count: Of rows; 0 stays 0.
        an_octave: 1, 2, 4 or 8: less padding, or fewer shapes.
    """
    if count <= 0:
        return 0
    octave = _octave(count)
    step = max(octave // 2, 16) // an_octave
    return octave if octave <= step else -(-count // step) * step


def _octave(count: int) -> int:
    """Return the power of two from a count on."""
    return 1 << (count - 1).bit_length()


def pieces(count: int, longest: int) -> list[int]:
    """Cut padding into texts that are no longer than the real ones: no position is new to the model."""
    return [min(longest, count - first) for first in range(0, count, longest)]


def pad_rows(x: torch.Tensor, count: int | None = None) -> torch.Tensor:
    """Return a tensor with rows of zeros behind its own: ``count`` rows, by default those of :func:`round_tokens`."""
    missing = (round_tokens(len(x)) if count is None else count) - len(x)
    if missing <= 0:
        return x
    padded = x.new_zeros(len(x) + missing, *x.shape[1:])
    padded[: len(x)] = x
    return padded
