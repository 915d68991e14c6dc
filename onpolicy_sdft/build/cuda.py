"""CUDA beside what is computed: the GPUs' names, and what its libraries read from the environment when they start."""

from __future__ import annotations

import logging
import os
import sys

logger = logging.getLogger(__name__)

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_REPEATABLE = (":4096:8", ":16:8")  # buffers and KiB with which cuBLAS adds in one order, as NVIDIA has it


def gpu_names() -> list[str]:
    """Return the names of the GPUs that this process sees."""
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def make_repeatable(option: str) -> None:
    """Let products of matrices on a GPU repeat bit for bit; where it is too late for that, say so.

    Args:
        option: What asks for it, for the message.
    """
    torch = sys.modules.get("torch")
    if _CUBLAS not in os.environ and (torch is None or not torch.cuda.is_initialized()):
        os.environ[_CUBLAS] = _REPEATABLE[0]
    found = os.environ.get(_CUBLAS)
    if found not in _REPEATABLE:
        was = "CUDA was in use before" if found is None else f"{_CUBLAS}={found} is set"
        logger.warning(
            f"{option} asks for results that repeat, but {was}: products of matrices on a GPU may differ "
            f"between runs. Fix: start with {_CUBLAS}={_REPEATABLE[0]}, or set {option}=false."
        )
