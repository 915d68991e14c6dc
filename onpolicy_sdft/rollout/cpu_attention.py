"""Attention over KV slots on a CPU: length-aware, grouped queries packed, one pass over each key and value.

torch's own kernels reach a quarter of the memory bandwidth at one query a row and read every row to the longest
one's length; this reads what is there. The dense version of the same sum is ``attention.dense_attention``.

Shape letters: S slots, H key-value heads, L positions of a slot, D head size, N packed tokens, G query heads a
key-value head, R query rows of a tile (tokens x G), W tiles.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange, types
from numba.extending import overload

_BLOCK = 64  # keys whose transposed copy stays in the first-level cache
_MIN_ROWS_TO_TRANSPOSE = 48  # below, the transposed copy costs more than it saves
_MAX_TILE_TOKENS = 32
_MAX_TILE_SCORES = 1 << 17  # floats of one tile's scores: half of a second-level cache

# The pool that torch computes in: two pools of threads would wait for each other's cores.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]

_f32 = np.float32
_i32 = np.int32


def tile_tokens(longest: int, group: int) -> int:
    """Return how many tokens of one row share a tile, so that its scores stay in cache."""
    return max(1, min(_MAX_TILE_TOKENS, _MAX_TILE_SCORES // (max(1, longest) * group)))


@njit(inline="always", fastmath=True, cache=True)
def _exp(x: Any) -> Any:
    """exp(x) for x <= 0 in float32, within 2 units in the last place (Cephes ``expf``); unlike libm's it vectorises."""
    x = max(x, _f32(-87.0))
    n = np.floor(x * _f32(1.4426950408889634) + _f32(0.5))
    r = x - n * _f32(0.693359375)
    r = r - n * _f32(-2.12194440e-4)
    p = _f32(1.9875691500e-4)
    p = p * r + _f32(1.3981999507e-3)
    p = p * r + _f32(8.3334519073e-3)
    p = p * r + _f32(4.1665795894e-2)
    p = p * r + _f32(1.6666665459e-1)
    p = p * r + _f32(5.0000001201e-1)
    p = p * r * r + r + _f32(1.0)
    return p * _i32((_i32(n) + _i32(127)) << _i32(23)).view(np.float32)


@njit(inline="always", fastmath=True, cache=True)
def _tanh(x: Any) -> Any:
    e = _exp(_f32(-2.0) * abs(x))
    t = (_f32(1.0) - e) / (_f32(1.0) + e)
    return t if x >= 0 else -t


def _load(x):  # type: ignore[no-untyped-def]  # numba compares the signature with that of the lambdas below
    """Read a stored number as float32; bfloat16 comes as its bits, uint16."""
    raise NotImplementedError


@overload(_load, inline="always")
def _load_typed(x):  # type: ignore[no-untyped-def]
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


@njit(fastmath=True, cache=True)
def _scores_of(q_RD: Any, keys_LD: Any, first: int, last: int, scores_RJ: Any) -> None:
    num_rows, size = q_RD.shape
    if num_rows < _MIN_ROWS_TO_TRANSPOSE:
        for j in range(first, last):
            for r in range(num_rows):
                total = _f32(0.0)
                for d in range(size):
                    total += q_RD[r, d] * _load(keys_LD[j, d])
                scores_RJ[r, j - first] = total
        return
    block_DJ = np.empty((size, _BLOCK), np.float32)
    for start in range(first, last, _BLOCK):
        width = min(_BLOCK, last - start)
        for j in range(width):
            for d in range(size):
                block_DJ[d, j] = _load(keys_LD[start + j, d])
        block_DJ[:, width:] = _f32(0.0)
        _multiply(q_RD, block_DJ, scores_RJ, start - first)


@njit(fastmath=True, cache=True)
def _multiply(q_RD: Any, block_DJ: Any, scores_RJ: Any, offset: int) -> None:
    """Multiply queries with a block of transposed keys: eight numbers of every row, then the next eight.

    With the rows inside, neighbouring sums do not wait for each other; with the numbers inside they would.
    """
    num_rows, size = q_RD.shape
    whole = size - size % 8
    scores_RJ[:, offset : offset + _BLOCK] = _f32(0.0)
    for d in range(0, whole, 8):
        for r in range(num_rows):
            row_J = scores_RJ[r, offset : offset + _BLOCK]  # contiguous, as a slice of two axes would not be
            q0, q1, q2, q3 = q_RD[r, d], q_RD[r, d + 1], q_RD[r, d + 2], q_RD[r, d + 3]
            q4, q5, q6, q7 = q_RD[r, d + 4], q_RD[r, d + 5], q_RD[r, d + 6], q_RD[r, d + 7]
            for j in range(_BLOCK):
                row_J[j] += (
                    q0 * block_DJ[d, j] + q1 * block_DJ[d + 1, j] + q2 * block_DJ[d + 2, j] + q3 * block_DJ[d + 3, j]
                    + q4 * block_DJ[d + 4, j] + q5 * block_DJ[d + 5, j] + q6 * block_DJ[d + 6, j]
                    + q7 * block_DJ[d + 7, j]
                )  # fmt: skip
    for d in range(whole, size):
        for r in range(num_rows):
            for j in range(_BLOCK):
                scores_RJ[r, offset + j] += q_RD[r, d] * block_DJ[d, j]


@njit(fastmath=True, cache=True)
def _weigh(row_J: Any, low: int, high: int, softcap: Any, has_sink: bool, sink: Any) -> None:
    """Turn one row's scores into weights in place; those outside [low, high) become 0."""
    if softcap > 0:
        for j in range(low, high):
            row_J[j] = softcap * _tanh(row_J[j] / softcap)
    largest = sink if has_sink else row_J[low]
    for j in range(low, high):
        largest = max(largest, row_J[j])
    total = _exp(sink - largest) if has_sink else _f32(0.0)
    for j in range(low, high):
        weight = _exp(row_J[j] - largest)
        row_J[j] = weight
        total += weight
    scale = _f32(1.0) / total
    for j in range(low, high):
        row_J[j] *= scale
    row_J[:low] = _f32(0.0)
    row_J[high:] = _f32(0.0)


@njit(fastmath=True, cache=True)
def _mix(weights_RJ: Any, values_LD: Any, first: int, last: int, out_RD: Any) -> None:
    num_rows, size = out_RD.shape
    out_RD[:] = _f32(0.0)
    whole, pairs = last - (last - first) % 4, num_rows - num_rows % 2
    for j in range(first, whole, 4):
        i = j - first
        for r in range(0, pairs, 2):  # two rows share each load of a value
            a0, a1, a2, a3 = weights_RJ[r, i], weights_RJ[r, i + 1], weights_RJ[r, i + 2], weights_RJ[r, i + 3]
            b0, b1 = weights_RJ[r + 1, i], weights_RJ[r + 1, i + 1]
            b2, b3 = weights_RJ[r + 1, i + 2], weights_RJ[r + 1, i + 3]
            for d in range(size):
                v0, v1 = _load(values_LD[j, d]), _load(values_LD[j + 1, d])
                v2, v3 = _load(values_LD[j + 2, d]), _load(values_LD[j + 3, d])
                out_RD[r, d] += a0 * v0 + a1 * v1 + a2 * v2 + a3 * v3
                out_RD[r + 1, d] += b0 * v0 + b1 * v1 + b2 * v2 + b3 * v3
        for r in range(pairs, num_rows):
            a0, a1, a2, a3 = weights_RJ[r, i], weights_RJ[r, i + 1], weights_RJ[r, i + 2], weights_RJ[r, i + 3]
            for d in range(size):
                out_RD[r, d] += (
                    a0 * _load(values_LD[j, d]) + a1 * _load(values_LD[j + 1, d])
                    + a2 * _load(values_LD[j + 2, d]) + a3 * _load(values_LD[j + 3, d])
                )  # fmt: skip
    for j in range(whole, last):
        for r in range(num_rows):
            a0 = weights_RJ[r, j - first]
            for d in range(size):
                out_RD[r, d] += a0 * _load(values_LD[j, d])


@njit(parallel=True, fastmath=True, cache=True)
def _attend(
    q_NHGD: Any, keys_SHLD: Any, values_SHLD: Any, tiles_W4: Any, window: int, scale: Any, softcap: Any,
    has_sinks: bool, sinks_HG: Any, out_NHGD: Any,
) -> None:  # fmt: skip
    _, num_heads, group, size = q_NHGD.shape
    value_size = out_NHGD.shape[3]
    for task in prange(tiles_W4.shape[0] * num_heads):
        tile, head = task // num_heads, task % num_heads
        start, count, slot, position = tiles_W4[tile, 0], tiles_W4[tile, 1], tiles_W4[tile, 2], tiles_W4[tile, 3]
        num_rows = count * group
        q_RD = np.empty((num_rows, size), np.float32)
        for i in range(count):
            for g in range(group):
                for d in range(size):
                    q_RD[i * group + g, d] = _load(q_NHGD[start + i, head, g, d]) * scale
        first = max(0, position + 1 - window) if window > 0 else 0
        last = position + count
        scores_RJ = np.empty((num_rows, -(-(last - first) // _BLOCK) * _BLOCK), np.float32)
        _scores_of(q_RD, keys_SHLD[slot, head], first, last, scores_RJ)
        for i in range(count):
            high = position + i + 1
            low = max(0, high - window) if window > 0 else 0
            for g in range(group):
                _weigh(scores_RJ[i * group + g], low - first, high - first, softcap, has_sinks, sinks_HG[head, g])
        out_RD = np.empty((num_rows, value_size), np.float32)
        _mix(scores_RJ, values_SHLD[slot, head], first, last, out_RD)
        for i in range(count):
            for g in range(group):
                for d in range(value_size):
                    out_NHGD[start + i, head, g, d] = out_RD[i * group + g, d]


def slot_attention(
    q_NHGD: torch.Tensor,
    keys_SHLD: torch.Tensor,
    values_SHLD: torch.Tensor,
    tiles_W4: torch.Tensor,
    *,
    scale: float,
    window: int,
    softcap: float,
    sinks_HG: torch.Tensor | None,
) -> torch.Tensor:
    """Attend each packed token to its slot's keys up to and including its own.

    Args:
        q_NHGD: Queries, float32 or bfloat16.
        keys_SHLD: Cached keys, the new ones among them, of the same type.
        values_SHLD: Cached values; their head size may differ.
        tiles_W4: int64 rows (first packed token, tokens, slot, position of the first token); see :func:`tile_tokens`.
        scale: Multiplies the scores.
        window: Keys a token sees, itself included; 0 sees all.
        softcap: Bound of the scores by ``softcap * tanh(score / softcap)``; 0 leaves them.
        sinks_HG: A score a head that takes part in the softmax and has no value.

    Returns:
        float32 [N, H, G, D].
    """
    out_NHGD = torch.empty(*q_NHGD.shape[:3], values_SHLD.shape[-1], dtype=torch.float32)
    sinks = sinks_HG.float() if sinks_HG is not None else torch.zeros(q_NHGD.shape[1:3])
    kernel: Any = _attend  # numba replaces the function by a dispatcher
    kernel(
        *(_array(t) for t in (q_NHGD, keys_SHLD, values_SHLD, tiles_W4)),
        window, _f32(scale), _f32(softcap), sinks_HG is not None, sinks.numpy(), out_NHGD.numpy(),
    )  # fmt: skip
    return out_NHGD


def use_threads_of_torch() -> None:
    """Let the kernel run on as many threads as torch does; both share one OpenMP pool."""
    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # made when numba is imported
    numba.set_num_threads(min(torch.get_num_threads(), most))


def _array(tensor: torch.Tensor) -> Any:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
