"""What a run was made with: versions, commit, hardware, seeds and data."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

import onpolicy_sdft
from onpolicy_sdft.machine import num_cores, total_memory
from onpolicy_sdft.versions import package_versions

PACKAGES = (
    "onpolicy_sdft",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
)
_GIT_TIMEOUT_SECONDS = 10


def collect_manifest(
    *,
    command: Sequence[str],
    seeds: Mapping[str, int],
    data_fingerprint: Mapping[str, Any] | str | None = None,
    gpu_names: Sequence[str] = (),
    start_time: float | None = None,
    source_root: Path | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Gather what is needed to tell two runs apart, or to repeat one.

    Args:
        command: The command line, program name first.
        seeds: Every seed of the run by option name, e.g. ``{"train.seed": 0}``.
        data_fingerprint: Digest of the data, or digests by set.
        gpu_names: Names of the accelerators in use; this room does not ask torch for them.
        start_time: Unix seconds; None is now.
        source_root: Directory that holds the package; None is where it was imported from.
        extra: Further entries, e.g. the number of ranks.

    Returns:
        A mapping that strict JSON can hold. ``git`` is None unless the package runs from a
        checkout of its own.
    """
    start_time = time.time() if start_time is None else start_time
    root = Path(onpolicy_sdft.__file__).parents[1] if source_root is None else source_root
    return {
        "command": list(command),
        "start_time": start_time,
        "started": datetime.fromtimestamp(start_time, UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **package_versions(PACKAGES)},
        "git": git_state(root),
        "hardware": hardware(gpu_names),
        "seeds": dict(seeds),
        "data_fingerprint": data_fingerprint,
        **(extra or {}),
    }


def git_state(root: Path) -> dict[str, Any] | None:
    """Read the commit of a source checkout.

    Args:
        root: Directory that holds the package.

    Returns:
        ``{"commit": sha, "dirty": bool}``, dirty when the package differs from the commit; None
        when the directory is not the top of a checkout (an installed package can lie inside a
        foreign one), or has no commit yet.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if top is None or commit is None or Path(top).resolve() != root.resolve():
        return None
    # The package alone: a run directory inside the checkout says nothing about the code that ran.
    status = _git(root, "status", "--porcelain", "--", "onpolicy_sdft")
    return {"commit": commit, "dirty": status != ""}


def hardware(gpu_names: Sequence[str] = ()) -> dict[str, Any]:
    """Describe the machine, without its name.

    Args:
        gpu_names: Names of the accelerators in use.

    Returns:
        ``platform``, ``cpu``, ``num_physical_cores``, ``num_logical_cores``, ``num_usable_cores``
        (what this process may run on), ``ram_bytes`` and ``gpus``.
    """
    logical = psutil.cpu_count(logical=True)
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "num_physical_cores": psutil.cpu_count(logical=False),
        "num_logical_cores": logical,
        "num_usable_cores": num_cores(),
        "ram_bytes": total_memory(),
        "gpus": list(gpu_names),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # no git, or a file system that hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None
