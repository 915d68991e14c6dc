"""Small operations of a decoder layer on a CPU, each in one pass over its numbers: norm, rotation, storing.

Torch makes four to seven passes and as many calls of them, which at the few rows of a decode forward is mostly the
calls. Float32; storing takes bfloat16 too.

Shape letters: N packed tokens, R rows, C columns, H heads, D head size, S slots, L positions, B blocks of W positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange

from onpolicy_sdft.rollout.cpu.attention import as_array, start_threads
from onpolicy_sdft.rollout.cpu.jit import inlined, jit

_WORTH_THREADS = 1 << 16  # numbers; below, waking the other threads takes longer than the work
_f32 = np.float32


@inlined(fastmath=True)
def _norm_row(x_RC: Any, weight_C: Any, offset: Any, epsilon: Any, out_RC: Any, r: int) -> None:
    size, total = x_RC.shape[1], _f32(0.0)
    for c in range(size):
        total += x_RC[r, c] * x_RC[r, c]
    scale = _f32(1.0) / np.sqrt(total / _f32(size) + epsilon)
    for c in range(size):
        out_RC[r, c] = x_RC[r, c] * scale * (weight_C[c] + offset)


@jit(fastmath=True)
def _norm(x_RC: Any, weight_C: Any, offset: Any, epsilon: Any, out_RC: Any) -> None:
    for r in range(x_RC.shape[0]):
        _norm_row(x_RC, weight_C, offset, epsilon, out_RC, r)


@jit(parallel=True, fastmath=True)
def _norm_threaded(x_RC: Any, weight_C: Any, offset: Any, epsilon: Any, out_RC: Any) -> None:
    for r in prange(x_RC.shape[0]):
        _norm_row(x_RC, weight_C, offset, epsilon, out_RC, r)


@inlined(fastmath=True)
def _rotate_token(x_NHD: Any, cos_ND: Any, sin_ND: Any, out_NHD: Any, n: int) -> None:
    half = x_NHD.shape[2] // 2
    for h in range(x_NHD.shape[1]):
        for d in range(half):
            low, high = x_NHD[n, h, d], x_NHD[n, h, half + d]
            out_NHD[n, h, d] = low * cos_ND[n, d] - high * sin_ND[n, d]
            out_NHD[n, h, half + d] = high * cos_ND[n, half + d] + low * sin_ND[n, half + d]


@jit(fastmath=True)
def _rotate(x_NHD: Any, cos_ND: Any, sin_ND: Any, out_NHD: Any) -> None:
    for n in range(x_NHD.shape[0]):
        _rotate_token(x_NHD, cos_ND, sin_ND, out_NHD, n)


@jit(parallel=True, fastmath=True)
def _rotate_threaded(x_NHD: Any, cos_ND: Any, sin_ND: Any, out_NHD: Any) -> None:
    for n in prange(x_NHD.shape[0]):
        _rotate_token(x_NHD, cos_ND, sin_ND, out_NHD, n)


@inlined()
def _store_token(
    keys_NHD: Any, values_NHD: Any, slot: int, position: int, keys_SHBDW: Any, values_SHLD: Any, n: int
) -> None:
    block, within = position // keys_SHBDW.shape[4], position % keys_SHBDW.shape[4]
    for h in range(keys_NHD.shape[1]):
        for d in range(keys_NHD.shape[2]):
            keys_SHBDW[slot, h, block, d, within] = keys_NHD[n, h, d]
        for d in range(values_NHD.shape[2]):
            values_SHLD[slot, h, position, d] = values_NHD[n, h, d]


@jit()
def _store(keys_NHD: Any, values_NHD: Any, slots_N: Any, positions_N: Any, keys_SHBDW: Any, values_SHLD: Any) -> None:
    for n in range(len(slots_N)):
        _store_token(keys_NHD, values_NHD, slots_N[n], positions_N[n], keys_SHBDW, values_SHLD, n)


@jit(parallel=True)
def _store_threaded(
    keys_NHD: Any, values_NHD: Any, slots_N: Any, positions_N: Any, keys_SHBDW: Any, values_SHLD: Any
) -> None:
    for n in prange(len(slots_N)):
        _store_token(keys_NHD, values_NHD, slots_N[n], positions_N[n], keys_SHBDW, values_SHLD, n)


def rms_norm(x: torch.Tensor, weight_C: torch.Tensor, offset: float, epsilon: float) -> torch.Tensor:
    """Scale rows to a root mean square of 1, then each column by its weight plus ``offset``: [..., C] -> [..., C]."""
    x_RC = x.reshape(-1, x.shape[-1])
    out_RC = torch.empty(x_RC.shape)
    _choose(_norm, _norm_threaded, x_RC)(
        as_array(x_RC), as_array(weight_C), _f32(offset), _f32(epsilon), out_RC.numpy()
    )
    return out_RC.view(x.shape)


def rotate(x_1HND: torch.Tensor, cos_1ND: torch.Tensor, sin_1ND: torch.Tensor) -> torch.Tensor:
    """Turn the two halves of each head against each other (rotary positions), ``x * cos + rotate_half(x) * sin``."""
    x_NHD = x_1HND[0].transpose(0, 1)
    out_NHD = torch.empty(x_NHD.shape, dtype=x_NHD.dtype)
    _choose(_rotate, _rotate_threaded, x_NHD)(
        as_array(x_NHD), as_array(cos_1ND[0]), as_array(sin_1ND[0]), out_NHD.numpy()
    )
    return out_NHD.transpose(0, 1)[None]


def store(
    keys_NHD: torch.Tensor,
    values_NHD: torch.Tensor,
    slots_N: torch.Tensor,
    positions_N: torch.Tensor,
    keys_SHBDW: torch.Tensor,
    values_SHLD: torch.Tensor,
) -> None:
    """Write new keys and values, of the buffers' type, to their slots and positions."""
    arrays = [as_array(t) for t in (keys_NHD, values_NHD, slots_N, positions_N, keys_SHBDW, values_SHLD)]
    _choose(_store, _store_threaded, keys_NHD)(*arrays)


def _choose(alone: Any, threaded: Any, x: torch.Tensor) -> Any:
    if x.numel() < _WORTH_THREADS:
        return alone
    start_threads()
    return threaded
