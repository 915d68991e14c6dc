"""Compile with numba, and keep what was compiled on disk where there is a place for it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit

logger = logging.getLogger(__name__)


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return numba's decorator with its cache, or without where it finds no directory to write to.

    A division by zero gives what floating point gives, as in torch: numbers that are none are found by the step.
    """
    options = {"error_model": "numpy", **options}

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            kernel = njit(cache=True, **options)(function)
            # numba looks at the function's own file alone, which is not all that it was compiled from.
            kept = kernel._cache._cache_file
            kept._source_stamp = (kept._source_stamp, _digest_of_sources())
            return kernel
        except RuntimeError:  # numba found no locator: a user without a home and a package that is read-only
            _warn_once()
            return njit(**options)(function)

    return compiled


def inlined(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return numba's decorator for what kernels call: it becomes part of each of them.

    A call that is left would reach other machine code in the process that compiled it (the function's own) than in
    processes that find the kernel on disk (the copy that was compiled into it), with other roundings: the first start
    on a machine would not write what later ones write.
    """
    return jit(forceinline=True, **options)


@cache
def _digest_of_sources() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def _warn_once() -> None:
    logger.warning(
        "compiled kernels cannot be kept on disk, so each start compiles them anew. "
        "Set NUMBA_CACHE_DIR to a directory that can be written to."
    )
