"""Compile a Triton kernel for a card that is not here."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}  # bytes one program may have


def compile_for(
    kernel: Any,
    capability: int,
    signature: dict[str, str],
    constants: dict[str, Any],
    aligned: Collection[str] = (),
    **options: Any,
) -> Any:
    """Compile for a compute capability and return Triton's metadata (``shared``: bytes of shared memory).

    Args:
        kernel: A function of ``triton.jit``.
        capability: 80 (A100) or 90 (H100, H200).
        signature: The type of each argument that is not constant, as Triton writes it: "*bf16", "i32", "fp32".
        constants: The value of each constant, None for what is not there.
        aligned: Arguments that are multiples of 16, as Triton sees by itself when a kernel is called; pointers are.
        options: ``num_warps``, ``num_stages``.
    """
    wrong = set(kernel.arg_names) ^ (signature.keys() | constants.keys())
    assert not wrong, f"arguments without a type, or types without an argument: {sorted(wrong)}"
    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(types.items())
        if name in aligned or kind.startswith("*")
    }
    source = ASTSource(kernel, types, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.metadata.shared <= SHARED_MEMORY[capability], f"{made.metadata.shared} bytes of shared memory"
    return made.metadata
