"""Which implementation of attention runs where."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch

from onpolicy_sdft.rollout.attention import KernelName, SlotKernels, TorchKernels

if TYPE_CHECKING:
    from collections.abc import Sequence

_DTYPES: dict[KernelName, Sequence[torch.dtype]] = {
    "cpu": (torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}


def best_kernels(device: torch.device, dtype: torch.dtype) -> KernelName:
    """Return the fastest implementation that there is for numbers of a type on a device."""
    name: KernelName = "cpu" if device.type == "cpu" else "triton"
    if dtype not in _DTYPES[name] or (name == "triton" and (device.type != "cuda" or not _has_triton())):
        return "torch"
    return name


def make_kernels(name: KernelName, length: int, device: torch.device) -> SlotKernels:
    """Make an implementation for slots of so many positions."""
    if name == "cpu":
        from onpolicy_sdft.rollout.cpu.kernels import CpuKernels  # numba: not on a GPU

        return CpuKernels(length)
    if name == "triton":
        from onpolicy_sdft.rollout.gpu.attention import TritonKernels  # Triton: not on a CPU

        return TritonKernels(length, device)
    return TorchKernels(length)


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
