"""Keyed noise inside a kernel: the numbers of :func:`onpolicy_sdft.rollout.noise.gumbel_noise`, bit for bit."""

from __future__ import annotations

import triton
import triton.language as tl

from onpolicy_sdft.rollout import noise

_MULTIPLIER_1 = tl.constexpr(noise.MULTIPLIERS[0])
_MULTIPLIER_2 = tl.constexpr(noise.MULTIPLIERS[1])
_SHIFT_1 = tl.constexpr(noise.SHIFTS[0])
_SHIFT_2 = tl.constexpr(noise.SHIFTS[1])
_SHIFT_3 = tl.constexpr(noise.SHIFTS[2])
_POSITION_STEP = tl.constexpr(noise.POSITION_STEP)


@triton.jit
def _mix(values):
    """Mix uint32 values; they wrap."""
    values = (values ^ (values >> _SHIFT_1)) * _MULTIPLIER_1
    values = (values ^ (values >> _SHIFT_2)) * _MULTIPLIER_2
    return values ^ (values >> _SHIFT_3)


@triton.jit
def noise_key(words_ptr, slot, position):
    """Hash a slot's key words [S, 2] and the index of a token within the completion to two uint32 words."""
    first = tl.load(words_ptr + slot * 2).to(tl.uint32) + position.to(tl.uint32) * _POSITION_STEP
    first = _mix(first)
    second = _mix(tl.load(words_ptr + slot * 2 + 1).to(tl.uint32) ^ first)
    return first, second


@triton.jit
def gumbel(first, second, ids):
    """Return standard Gumbel noise of each id, float32."""
    bits = _mix((_mix(ids.to(tl.uint32)) ^ first) + second)
    # 23 bits fit in int32, which every card turns into float32 in one instruction.
    uniform = ((bits >> 9).to(tl.int32).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    return -tl.log(-tl.log(uniform))
