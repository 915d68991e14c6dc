"""What numba's loops do not turn into vector instructions by themselves, written as instructions of LLVM.

The product of a few rows: numba stores and loads every sum again for each step of the inner product, which reaches a
third of what the processor can do; here sums stay in registers. Rows are cut into groups that fill the registers,
columns into strips of :data:`STRIP`. And the larger of two numbers, whose reduction over a row LLVM vectorises only
where neither may be nan.

Shape letters: R rows, C columns, N terms of each sum.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from onpolicy_sdft.rollout.cpu.jit import inlined


def _registers() -> tuple[int, int]:
    """Return floats of a vector register, and registers to a row: with six rows the sums fill most of the file."""
    has = llvmlite.binding.get_host_cpu_features()
    return (16, 4) if has.get("avx512f", False) else (8, 2) if has.get("avx2", False) else (4, 4)


LANES, _VECTORS = _registers()  # columns of a register
STRIP = LANES * _VECTORS  # columns of one pass


@intrinsic
def _larger(typing_context, x, y):  # type: ignore[no-untyped-def]  # numba calls it so
    """Return the larger of two float32 numbers, neither of them nan."""
    real = ir.FloatType()

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        maximum = builder.module.declare_intrinsic("llvm.maxnum", [real], ir.FunctionType(real, [real, real]))
        return builder.call(maximum, args, fastmath=("fast",))

    return types.float32(types.float32, types.float32), emit


larger: Any = _larger  # a function within numba's code; what it is outside takes other arguments


def _strip(rows: int, vectors: int) -> Any:
    """Make the product of ``rows`` rows with a strip of ``vectors`` registers."""

    @intrinsic
    def multiply(typing_context, a, row, first, b, b_row, column, count, out, out_column):  # type: ignore[no-untyped-def]
        index = types.intp
        signature = types.void(a, index, index, b, index, index, index, out, index)
        return signature, lambda context, builder, sig, args: _emit(context, builder, sig, args, rows, vectors)

    return multiply


def _emit(context: Any, builder: Any, signature: Any, args: Any, rows: int, vectors: int) -> Any:
    """Write ``out[row + r, out_column + c] = sum over i of a[row + r, first + i] * b[b_row + i, column + c]``."""
    a, b, out = (context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 3, 7))
    _, row, first, _, b_row, column, count, _, out_column = args
    bits = signature.args[3].dtype == types.uint16  # bfloat16 comes as its bits
    b_bytes = 2 if bits else 4
    intp, real = ir.IntType(64), ir.FloatType()
    vector, wide = ir.VectorType(real, LANES), ir.VectorType(ir.IntType(32), LANES)

    alloca: Any = cgutils.alloca_once_value

    def address(array: Any, i: Any, j: Any, num_bytes: int) -> Any:
        offset = builder.add(builder.mul(i, builder.extract_value(array.strides, 0)), builder.mul(j, intp(num_bytes)))
        return builder.add(builder.ptrtoint(array.data, intp), offset)

    def pointer(place: Any, to: Any) -> Any:
        return builder.inttoptr(place, to.as_pointer())

    def load(place: Any) -> Any:
        if not bits:
            return builder.load(pointer(place, vector), align=4)
        halves = builder.load(pointer(place, ir.VectorType(ir.IntType(16), LANES)), align=2)
        return builder.bitcast(builder.shl(builder.zext(halves, wide), ir.Constant(wide, [16] * LANES)), vector)

    def spread(place: Any) -> Any:
        nothing = ir.Constant(vector, ir.Undefined)
        one = builder.insert_element(nothing, builder.load(pointer(place, real), align=4), ir.IntType(32)(0))
        return builder.shuffle_vector(one, nothing, ir.Constant(wide, [0] * LANES))

    zero = ir.Constant(vector, [0.0] * LANES)
    sums = [[alloca(builder, zero) for _ in range(vectors)] for _ in range(rows)]
    a_rows = [address(a, builder.add(row, intp(r)), first, 4) for r in range(rows)]
    b_start, b_stride = address(b, b_row, column, b_bytes), builder.extract_value(b.strides, 0)
    with cgutils.for_range(builder, count) as loop:
        here = builder.add(b_start, builder.mul(loop.index, b_stride))
        terms = [load(builder.add(here, intp(v * LANES * b_bytes))) for v in range(vectors)]
        for r in range(rows):
            factor = spread(builder.add(a_rows[r], builder.mul(loop.index, intp(4))))
            for v in range(vectors):
                product = builder.fmul(factor, terms[v], flags=("fast",))
                builder.store(builder.fadd(builder.load(sums[r][v]), product, flags=("fast",)), sums[r][v])
    for r in range(rows):
        place = address(out, builder.add(row, intp(r)), out_column, 4)
        for v in range(vectors):
            builder.store(builder.load(sums[r][v]), pointer(builder.add(place, intp(v * LANES * 4)), vector), align=4)
    return context.get_dummy_value()


_six, _three, _two, _one = (_strip(rows, _VECTORS) for rows in (6, 3, 2, 1))
_six_narrow, _one_narrow = _strip(6, 1), _strip(1, 1)


@inlined(fastmath=True)
def multiply_strip(
    a_RN: Any, first: int, b_NC: Any, b_row: int, column: int, count: int, out_RC: Any, out_column: int
) -> None:
    """Multiply ``a[:, first : first + count]`` with ``b[b_row : b_row + count, column : column + STRIP]``.

    Args:
        a_RN: float32, contiguous rows.
        first: First term.
        b_NC: float32, or bfloat16 as its bits (uint16); contiguous rows.
        b_row: Row of ``b`` that belongs to the first term.
        column: First column of ``b``.
        count: Terms.
        out_RC: float32; the strip from ``out_column`` is overwritten.
        out_column: First column of ``out``.
    """
    num_rows, r = a_RN.shape[0], 0
    while r + 6 <= num_rows:
        _six(a_RN, r, first, b_NC, b_row, column, count, out_RC, out_column)
        r += 6
    while r + 3 <= num_rows:
        _three(a_RN, r, first, b_NC, b_row, column, count, out_RC, out_column)
        r += 3
    if r + 2 <= num_rows:
        _two(a_RN, r, first, b_NC, b_row, column, count, out_RC, out_column)
        r += 2
    if r < num_rows:
        _one(a_RN, r, first, b_NC, b_row, column, count, out_RC, out_column)


@inlined(fastmath=True)
def multiply_register(
    a_RN: Any, first: int, b_NC: Any, b_row: int, column: int, count: int, out_RC: Any, out_column: int
) -> None:
    """As :func:`multiply_strip`, for the columns of one register."""
    num_rows, r = a_RN.shape[0], 0
    while r + 6 <= num_rows:
        _six_narrow(a_RN, r, first, b_NC, b_row, column, count, out_RC, out_column)
        r += 6
    while r < num_rows:
        _one_narrow(a_RN, r, first, b_NC, b_row, column, count, out_RC, out_column)
        r += 1
