"""Compile with numba, and keep what was compiled on disk where there is a place for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from numba import njit

logger = logging.getLogger(__name__)


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return numba's decorator with its cache, or without where it finds no directory to write to."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # numba found no locator: a user without a home and a package that is read-only
            _warn_once()
            return njit(**options)(function)

    return compiled


@cache
def _warn_once() -> None:
    logger.warning(
        "compiled kernels cannot be kept on disk, so each start compiles them anew. "
        "Set NUMBA_CACHE_DIR to a directory that can be written to."
    )
