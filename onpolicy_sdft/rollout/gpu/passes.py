"""What stands between the products of a decoder layer, one kernel each: norms, gated units, rotary positions, stores.

``fused.py`` and ``layers.py`` put them in place of a model's own operations where both give the same.

Shape letters: N packed tokens, H heads, D head size, I size of a gated unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from onpolicy_sdft.rollout.slots import Packing

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}  # as ``gate_rows`` numbers them


@triton.jit
def norm_rows(x_ptr, weight_ptr, out_ptr, size, epsilon, offset, SIZE: tl.constexpr, ROUND: tl.constexpr):
    """Divide a row by its root mean square. ``ROUND``: to the type of the numbers before the weight comes in."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SIZE)
    inside = i < size
    x = tl.load(x_ptr + row * size + i, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / size + epsilon)
    if ROUND:
        wide = wide.to(x.dtype).to(tl.float32)
    weight = tl.load(weight_ptr + i, mask=inside, other=0.0).to(tl.float32) + offset
    tl.store(out_ptr + row * size + i, (wide * weight).to(x.dtype), mask=inside)


@triton.jit
def gate_rows(gate_ptr, up_ptr, out_ptr, gate_n, up_n, size, ACTIVATION: tl.constexpr, SIZE: tl.constexpr):
    """Multiply ``activation(gate)`` by ``up``, rounding as the two operations would."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = i < size
    gate = tl.load(gate_ptr + row * gate_n + i, mask=inside, other=0.0)
    up = tl.load(up_ptr + row * up_n + i, mask=inside, other=0.0)
    x = gate.to(tl.float32)
    if ACTIVATION == 0:
        y = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == 1:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        y = x * (1.0 - 1.0 / (tl.exp(2.0 * inner) + 1.0))
    else:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    tl.store(
        out_ptr + row * size + i, (y.to(gate.dtype).to(tl.float32) * up.to(tl.float32)).to(gate.dtype), mask=inside
    )


@triton.jit
def _rotated(a, b, cos_ptr, sin_ptr, n, i, inside, HALF: tl.constexpr):
    at = n * 2 * HALF + i
    cos_a = tl.load(cos_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sin_a = tl.load(sin_ptr + at, mask=inside, other=0.0).to(tl.float32)
    cos_b = tl.load(cos_ptr + at + HALF, mask=inside, other=0.0).to(tl.float32)
    sin_b = tl.load(sin_ptr + at + HALF, mask=inside, other=0.0).to(tl.float32)
    return a * cos_a - b * sin_a, b * cos_b + a * sin_b


@triton.jit
def rotate_rows(x_ptr, cos_ptr, sin_ptr, out_ptr, x_h, x_n, HALF: tl.constexpr, HALF_P: tl.constexpr):
    """Rotate the two halves of one head of one token: -> [N, H, D]."""
    n, h = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i = tl.arange(0, HALF_P)
    inside = i < HALF
    source = x_ptr + h * x_h + n * x_n + i
    a, b = tl.load(source, mask=inside, other=0.0), tl.load(source + HALF, mask=inside, other=0.0)
    first, second = _rotated(a.to(tl.float32), b.to(tl.float32), cos_ptr, sin_ptr, n, i, inside, HALF)
    target = out_ptr + (n * tl.num_programs(1) + h) * 2 * HALF + i
    tl.store(target, first.to(a.dtype), mask=inside)
    tl.store(target + HALF, second.to(a.dtype), mask=inside)


@triton.jit
def place_heads(
    qkv_ptr, cos_ptr, sin_ptr, q_norm_ptr, k_norm_ptr, slots_ptr, positions_ptr, keys_ptr, values_ptr, qkv_n, keys_s,
    keys_h, keys_l, values_s, values_h, values_l, epsilon, offset, NUM_Q: tl.constexpr, NUM_K: tl.constexpr,
    D: tl.constexpr, HALF: tl.constexpr, SIZE: tl.constexpr, NORM: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """Finish one head of a joined product [N, (q, k, v heads) x D]: norm, rotate, leave q in place, store k and v.

    A head is read as its two halves; of ``D`` numbers the first 2 x ``HALF`` are rotated, and where that is not all of
    them (``HALF`` x 2 < ``D``) the rest goes through as it is.
    """
    n, h = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i = tl.arange(0, SIZE)
    source = qkv_ptr + n * qkv_n + h * D
    slot, position = tl.load(slots_ptr + n), tl.load(positions_ptr + n)
    if h >= NUM_Q + NUM_K:
        target = values_ptr + slot * values_s + (h - NUM_Q - NUM_K) * values_h + position * values_l
        for at in tl.static_range(0, D, SIZE):
            inside = i + at < D
            tl.store(target + at + i, tl.load(source + at + i, mask=inside), mask=inside)
    else:
        inside = i < HALF
        a = tl.load(source + i, mask=inside, other=0.0)
        b = tl.load(source + HALF + i, mask=inside, other=0.0)
        first, second = a.to(tl.float32), b.to(tl.float32)
        if NORM:
            norm_ptr = q_norm_ptr
            if h >= NUM_Q:
                norm_ptr = k_norm_ptr
            scale = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / D + epsilon)
            first, second = first * scale, second * scale
            if ROUND:
                first, second = first.to(a.dtype).to(tl.float32), second.to(a.dtype).to(tl.float32)
            first = first * (tl.load(norm_ptr + i, mask=inside, other=0.0).to(tl.float32) + offset)
            second = second * (tl.load(norm_ptr + HALF + i, mask=inside, other=0.0).to(tl.float32) + offset)
            first, second = first.to(a.dtype).to(tl.float32), second.to(a.dtype).to(tl.float32)
        first, second = _rotated(first, second, cos_ptr, sin_ptr, n, i, inside, HALF)
        target = source
        if h >= NUM_Q:
            target = keys_ptr + slot * keys_s + (h - NUM_Q) * keys_h + position * keys_l
        tl.store(target + i, first.to(a.dtype), mask=inside)
        tl.store(target + HALF + i, second.to(a.dtype), mask=inside)
        if h >= NUM_Q:
            for at in tl.static_range(2 * HALF, D, SIZE):  # what is not rotated
                rest = i + at < D
                tl.store(target + at + i, tl.load(source + at + i, mask=rest), mask=rest)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, offset: float, epsilon: float, *, round_first: bool = False
) -> torch.Tensor:
    """Divide rows by their root mean square and multiply by ``weight + offset``: any shape, float32 inside."""
    x = x.contiguous()
    out, size = torch.empty_like(x), x.shape[-1]
    norm_rows[(x.numel() // size,)](
        x, weight, out, size, epsilon, offset, SIZE=triton.next_power_of_2(size), ROUND=round_first, num_warps=4
    )
    return out


def gated(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """Return ``activation(gate) * up``: [..., I] each, rows in one piece -> [..., I]."""
    size = gate.shape[-1]
    gate_NI, up_NI = gate.reshape(-1, size), up.reshape(-1, size)
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    gate_rows[(len(gate_NI), triton.cdiv(size, 1024))](
        gate_NI, up_NI, out, gate_NI.stride(0), up_NI.stride(0), size, ACTIVATION=ACTIVATIONS[activation], SIZE=1024,
        num_warps=4,
    )  # fmt: skip
    return out


def rotate(x_1HND: torch.Tensor, cos_1ND: torch.Tensor, sin_1ND: torch.Tensor) -> torch.Tensor:
    """Rotate positions into queries or keys: [1, H, N, D] -> the same shape, laid out token by token."""
    _, num_heads, num_tokens, size = x_1HND.shape
    x = x_1HND if x_1HND.stride(-1) == 1 else x_1HND.contiguous()
    out = torch.empty(1, num_tokens, num_heads, size, dtype=x.dtype, device=x.device)
    half = size // 2
    rotate_rows[(num_tokens, num_heads)](
        x, cos_1ND.contiguous(), sin_1ND.contiguous(), out, x.stride(1), x.stride(2), HALF=half,
        HALF_P=triton.next_power_of_2(half), num_warps=1,
    )  # fmt: skip
    return out.transpose(1, 2)


def finish_heads(
    qkv_NX: torch.Tensor,
    cos_1ND: torch.Tensor,
    sin_1ND: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor, float, float, bool] | None,
    packing: Packing,
    keys_SHLD: torch.Tensor,
    values_SHLD: torch.Tensor,
    num_queries: int,
) -> None:
    """Norm and rotate the heads of a joined product in place, and store keys and values in their slots.

    Args:
        qkv_NX: Query heads, key heads, value heads, D each.
        cos_1ND: Of the rotated part of a head, as ``sin_1ND``.
        sin_1ND: See ``cos_1ND``.
        norms: Weights of the norms of query and key heads, their epsilon, what is added to the weight, and whether
            rows are rounded first; None: there are none.
        packing: Where tokens go.
        keys_SHLD: Of the layer.
        values_SHLD: Of the layer.
        num_queries: Query heads.
    """
    num_heads, size = keys_SHLD.shape[1], keys_SHLD.shape[-1]
    half = cos_1ND.shape[-1] // 2
    q_norm, k_norm, epsilon, offset, round_first = norms or (qkv_NX, qkv_NX, 0.0, 0.0, False)
    place_heads[(len(qkv_NX), num_queries + 2 * num_heads)](
        qkv_NX, cos_1ND, sin_1ND, q_norm, k_norm, packing.slots_N, packing.positions_N, keys_SHLD, values_SHLD,
        qkv_NX.stride(0), *keys_SHLD.stride()[:3], *values_SHLD.stride()[:3], epsilon, offset, NUM_Q=num_queries,
        NUM_K=num_heads, D=size, HALF=half, SIZE=triton.next_power_of_2(half), NORM=norms is not None,
        ROUND=round_first, num_warps=1,
    )  # fmt: skip
