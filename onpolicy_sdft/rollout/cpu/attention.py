"""Attention over KV slots on a CPU: length-aware, grouped queries packed, one pass over each key and value.

torch's own kernels reach a quarter of the memory bandwidth at one query a row and read every row to the longest
one's length; this reads what is there. The same sum in torch operations is ``attention.plain_attention``.

Keys are stored in blocks, see :data:`KEY_BLOCK`; ``slots.SlotCache`` writes them so.

Shape letters: S slots, H key-value heads, L positions of a slot, D head size, N packed tokens, G query heads a
key-value head, R query rows of a tile (tokens x G), W tiles or the keys of a block, B blocks, X = B x D.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from numba import prange, types
from numba.extending import overload

from onpolicy_sdft.rollout.cpu import KEY_BLOCK
from onpolicy_sdft.rollout.cpu.jit import inlined, jit
from onpolicy_sdft.rollout.cpu.vectors import LANES, STRIP, larger, multiply_register, multiply_strip

if TYPE_CHECKING:
    from onpolicy_sdft.rollout.slots import Segment

_MAX_TILE_TOKENS = 32
_MAX_TILE_SCORES = 1 << 17  # floats of one tile's scores: half of a second-level cache

# The pool that torch computes in: two pools of threads would wait for each other's cores.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]

_f32 = np.float32
_i32 = np.int32


def tile_tokens(longest: int, group: int) -> int:
    """Return how many tokens of one row share a tile, so that its scores stay in cache."""
    return max(1, min(_MAX_TILE_TOKENS, _MAX_TILE_SCORES // (max(1, longest) * group)))


def tiles(segments: tuple[Segment, ...], group: int) -> torch.Tensor:
    """Cut segments into the kernel's tiles: int64 rows (first packed token, tokens, slot, first position)."""
    found = []
    for segment in segments:
        width = tile_tokens(segment.position + segment.count, group)
        for offset in range(0, segment.count, width):
            count = min(width, segment.count - offset)
            found.append((segment.start + offset, count, segment.slot, segment.position + offset))
    # The kernel gives each thread a run of neighbouring tiles: deal them out so that each run is as much work.
    order = sorted(range(len(found)), key=lambda i: -found[i][1] * (found[i][3] + found[i][1]))
    num_threads = torch.get_num_threads()
    dealt = [found[i] for first in range(num_threads) for i in order[first::num_threads]]
    return torch.tensor(dealt, dtype=torch.int64).reshape(-1, 4)


@jit(inline="always", fastmath=True)
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


@jit(inline="always", fastmath=True)
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


@inlined(fastmath=True)
def _scores_of(q_RD: Any, blocks_XW: Any, first: int, last: int, scores_RJ: Any) -> None:
    """Multiply queries with the keys from ``first``, the start of a block, up to ``last``."""
    size = q_RD.shape[1]
    for j in range(first, last, KEY_BLOCK):
        for strip in range(0, KEY_BLOCK, STRIP):
            multiply_strip(q_RD, 0, blocks_XW, j // KEY_BLOCK * size, strip, size, scores_RJ, j - first + strip)


@inlined(fastmath=True)
def _weigh(row_J: Any, low: int, high: int, softcap: Any, has_sink: bool, sink: Any) -> None:
    """Turn one row's scores into weights in place; those outside [low, high) become 0."""
    seen_J = row_J[low:high]  # counted from 0: an index that might be negative is not vectorised
    if softcap > 0:
        for j in range(len(seen_J)):
            seen_J[j] = softcap * _tanh(seen_J[j] / softcap)
    largest = sink if has_sink else seen_J[0]
    for j in range(len(seen_J)):
        largest = larger(largest, seen_J[j])
    total = _exp(sink - largest) if has_sink else _f32(0.0)
    for j in range(len(seen_J)):
        weight = _exp(seen_J[j] - largest)
        seen_J[j] = weight
        total += weight
    scale = _f32(1.0) / total
    for j in range(len(seen_J)):
        seen_J[j] *= scale
    row_J[:low] = _f32(0.0)
    row_J[high:] = _f32(0.0)


@inlined(fastmath=True)
def _mix(weights_RJ: Any, values_LD: Any, first: int, last: int, out_RD: Any) -> None:
    """Sum values from ``first`` up to ``last`` by weight, strip by strip of their numbers."""
    num_rows, size = out_RD.shape
    count, d = last - first, 0
    while d + STRIP <= size:
        multiply_strip(weights_RJ, 0, values_LD, first, d, count, out_RD, d)
        d += STRIP
    while d + LANES <= size:
        multiply_register(weights_RJ, 0, values_LD, first, d, count, out_RD, d)
        d += LANES
    for r in range(num_rows if d < size else 0):
        out_RD[r, d:] = _f32(0.0)
        for j in range(first, last):
            for e in range(d, size):
                out_RD[r, e] += weights_RJ[r, j - first] * _load(values_LD[j, e])


@jit(parallel=True, fastmath=True)
def _attend(
    q_NHGD: Any, keys_SHXW: Any, values_SHLD: Any, tiles_W4: Any, window: int, scale: Any, softcap: Any,
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
        first = max(0, position + 1 - window) // KEY_BLOCK * KEY_BLOCK if window > 0 else 0
        last = position + count
        scores_RJ = np.empty((num_rows, -(-(last - first) // KEY_BLOCK) * KEY_BLOCK), np.float32)
        _scores_of(q_RD, keys_SHXW[slot, head], first, last, scores_RJ)
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
    keys_SHBDW: torch.Tensor,
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
        keys_SHBDW: Cached keys, the new ones among them, of the same type, in blocks of W = ``KEY_BLOCK``.
        values_SHLD: Cached values; their head size may differ.
        tiles_W4: int64 rows (first packed token, tokens, slot, position of the first token); see :func:`tile_tokens`.
        scale: Multiplies the scores.
        window: Keys a token sees, itself included; 0 sees all.
        softcap: Bound of the scores by ``softcap * tanh(score / softcap)``; 0 leaves them.
        sinks_HG: A score a head that takes part in the softmax and has no value.

    Returns:
        float32 [N, H, G, D].
    """
    start_threads()
    out_NHGD = torch.empty(*q_NHGD.shape[:3], values_SHLD.shape[-1], dtype=torch.float32)
    # A copy: numpy pins the memory it looks at, and gathered weights are given back.
    sinks = torch.zeros(q_NHGD.shape[1:3]) if sinks_HG is None else sinks_HG.detach().float().clone()
    kernel: Any = _attend  # numba replaces the function by a dispatcher
    kernel(
        *(as_array(t) for t in (q_NHGD, keys_SHBDW.flatten(2, 3), values_SHLD, tiles_W4)),
        window, _f32(scale), _f32(softcap), sinks_HG is not None, sinks.numpy(), out_NHGD.numpy(),
    )  # fmt: skip
    return out_NHGD


def use_threads_of_torch() -> None:
    """Let the kernel run on as many threads as torch does; both share one OpenMP pool."""
    start_threads()
    numba.set_num_threads(min(torch.get_num_threads(), _most()))


def _most() -> int:
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]  # made when numba is imported


@functools.cache
def start_threads() -> None:
    """Start numba's threads, and leave torch as many as it had.

    Starting them tells OpenMP, and so torch, to use one a core; several ranks on a machine would each use all of it.
    """
    wanted = torch.get_num_threads()
    numba.set_num_threads(min(wanted, _most()))
    torch.set_num_threads(wanted)


def as_array(tensor: torch.Tensor) -> Any:
    """Return a tensor's memory as numba takes it; bfloat16 as its bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
