"""Keyed noise: every draw's randomness is a pure function of who asks, and never of batch, order or rank.

A token is drawn as ``argmax(log p + G)`` with Gumbel noise ``G`` hashed from (seed, step, example, sample,
attempt, position, vocabulary id). Gumbel rather than an inverse CDF: when rounding moves the distribution by a total
variation e, the drawn token changes with probability at most 2 e, wherever it stands in the vocabulary.

Shape letters: B rows, V ids.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onpolicy_sdft.types import NoiseKey

_UINT32 = 0xFFFFFFFF
# Two-round multiply-xorshift mixer on 32 bits (the "lowbias32" constants found by C. Wellons' hash prospector).
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
SHIFTS = (16, 15, 16)
POSITION_STEP = 0x9E3779B9  # 2**32 / golden ratio: neighbouring positions start far apart


def key_words(keys: Sequence[NoiseKey]) -> torch.Tensor:
    """Hash noise keys to two 32-bit words each.

    Returns:
        [B, 2] int64 on the CPU, values in [0, 2**32).
    """
    words = []
    for key in keys:
        text = f"{key.seed}|{key.step}|{key.sample_index}|{key.attempt}|{key.example_id}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        words.append([int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")])
    return torch.tensor(words, dtype=torch.int64).reshape(-1, 2)


def gumbel_noise(words_B2: torch.Tensor, positions_B: torch.Tensor, ids_BV: torch.Tensor) -> torch.Tensor:
    """Fill standard Gumbel noise for some ids at one position of each row.

    Integer hashing: no generator state, the same numbers on every device, and only for the ids that are asked for.

    Args:
        words_B2: From :func:`key_words`, [B, 2] int64.
        positions_B: Index of the token within the completion, [B] int64.
        ids_BV: What is drawn from, int32; [B, V], or [1, V] for the same ids in every row.

    Returns:
        [B, V] float32. 23 random bits a value: probabilities below about 1e-7 are not resolved.
    """
    first = _mix(words_B2[:, 0] + positions_B * POSITION_STEP & _UINT32)
    second = _mix(words_B2[:, 1] ^ first)
    bits = _mix_(ids_BV.clone()) ^ _as_int32(first)[:, None]
    bits = _mix_(bits.add_(_as_int32(second)[:, None]))
    # 23 bits + 1/2 is exact in float32 and keeps the uniform strictly inside (0, 1).
    uniform = bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).to(torch.float32).add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_().log_().neg_()


def _mix_(values: torch.Tensor) -> torch.Tensor:
    """Mix int32 values in place; a bijection of the 32-bit integers."""
    for shift, multiplier in zip(SHIFTS[:2], MULTIPLIERS, strict=True):
        values ^= (values >> shift).bitwise_and_((1 << (32 - shift)) - 1)
        values *= multiplier - 2**32 if multiplier >= 2**31 else multiplier  # int32 wraps, as intended
    values ^= (values >> SHIFTS[2]).bitwise_and_((1 << (32 - SHIFTS[2])) - 1)
    return values


def _mix(values: torch.Tensor) -> torch.Tensor:
    """Mix int64 values that hold 32-bit words, to 32-bit words."""
    return _mix_(_as_int32(values)).to(torch.int64) & _UINT32


def _as_int32(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values >= 2**31, values - 2**32, values).to(torch.int32)
