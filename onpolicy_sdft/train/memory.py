"""How much memory a part of a step took."""

from __future__ import annotations

import psutil
import torch

_MIB = 2**20


def memory_mib(device: torch.device) -> int:
    """Return this process's memory in MiB: on a GPU the peak since the last call, elsewhere what is resident now."""
    if device.type != "cuda":
        return int(psutil.Process().memory_info().rss // _MIB)
    peak = int(torch.cuda.max_memory_allocated(device) // _MIB)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
