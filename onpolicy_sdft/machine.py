"""The memory and the cores this process may use: the machine's, or less where something sets a limit."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_PROC, _SYS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def num_cores() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(proc: Path = _PROC, sys: Path = _SYS) -> tuple[int, str]:
    """Return the bytes that can be had now, and what limits them (empty: the machine itself).

    Args:
        proc: The groups of this process (Linux control groups, version 1 or 2).
        sys: Where groups are mounted.
    """
    free, origin = int(psutil.virtual_memory().available), ""
    for directory, limit, used in _limits(proc, sys):
        if limit - used < free:
            free, origin = max(0, limit - used), f"the limit of {limit / 2**30:.2f} GiB in {directory}"
    return free, origin


def total_memory(proc: Path = _PROC, sys: Path = _SYS) -> int:
    """Return the bytes this process could have if it were alone."""
    return min([int(psutil.virtual_memory().total), *(limit for _, limit, _ in _limits(proc, sys))])


def give_memory_back() -> None:
    """Give the system what was freed after a peak: glibc keeps it, and cuts holes into it, until it is told."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _limits(proc: Path, sys: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield the directory, limit and use of every group this process is in, from the innermost to the outermost."""
    try:
        lines = proc.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = sys, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = sys / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        place = root / path.lstrip("/")  # in a container it may not be there: its own group is the root then
        for directory in (place, *(parent for parent in place.parents if parent.is_relative_to(root))):
            limit, used = (_number(directory / name) for name in names)
            if limit is not None and used is not None:
                yield directory, limit, max(0, used - _reclaimable(directory))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or "max": no limit
        return None


def _reclaimable(directory: Path) -> int:
    """Return the bytes of files kept in memory, which the kernel gives back when they are needed."""
    try:
        lines = (directory / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    found = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))
