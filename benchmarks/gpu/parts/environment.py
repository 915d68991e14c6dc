"""The machine: card, driver, versions, bandwidth and arithmetic as measured."""

from __future__ import annotations

import os
import platform
import subprocess

import torch

from benchmarks.gpu.bench import Bench
from onpolicy_sdft.runs.manifest import package_versions

_PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "numpy")


def run(bench: Bench) -> None:
    """Note what everything else is measured on."""
    versions = package_versions(_PACKAGES)
    bench.note("environment", "versions", python=platform.python_version(), **versions)
    bench.note("environment", "processor", cores=os.cpu_count(), threads=torch.get_num_threads())
    if bench.device.type == "cuda":
        facts = torch.cuda.get_device_properties(0)
        bench.note(
            "environment", "card", name=facts.name, gib=round(facts.total_memory / 2**30, 1), driver=_driver(),
            multiprocessors=facts.multi_processor_count, capability=f"{facts.major}.{facts.minor}",
            cuda=torch.version.cuda,
        )  # fmt: skip
    bench.note("environment", "copied", tb_a_second=round(bench.bandwidth() / 1e12, 3))
    read = torch.ones(bench.pick(1 << 29, 1 << 22), dtype=bench.dtype, device=bench.device)
    seconds = bench.median_clock(lambda: read.sum())
    bench.note("environment", "read", tb_a_second=round(read.nbytes / seconds / 1e12, 3))
    size = bench.pick(8192, 256)
    left, right = torch.randn(2, size, size, dtype=bench.dtype, device=bench.device)
    seconds = bench.median_clock(lambda: left @ right)
    bench.note("environment", "matrix product", tflop_a_second=round(2 * size**3 / seconds / 1e12, 2), size=size)


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"
