"""Wait for ranks that are at work, however long; give up on ranks that are gone.

A collective gives up after a fixed time and cannot tell a dead rank from a busy one. So ranks wait for each other here
before they call one. Every rank counts up in the store of the process group every few seconds. A rank that waits gives
up when one of the others has not counted for ``timeout_seconds``, or at once when its process is gone from this
machine: one that the system killed for want of memory says nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from torch.distributed import DistError, PrefixStore  # type: ignore[attr-defined]

from onpolicy_sdft.errors import TrainingError

_LONGEST_INTERVAL = 5.0  # seconds between two beats
_ENDED = ("Z", "X", "x")  # states of a process that only waits to be noticed


class Heartbeat:
    """Beats while this process lives; every rank makes one, in the same order.

    Args:
        store: The process group's ``torch.distributed.Store``.
        rank: Index of this process.
        num_ranks: Number of processes.
        timeout_seconds: Longest silence of a rank that others wait for.
    """

    def __init__(self, store: Any, rank: int, num_ranks: int, timeout_seconds: float) -> None:
        # Ranks make their heartbeats in the same order, so the same one has the same number.
        prefix = f"sdft/{store.add(f'sdft/made/{rank}', 1)}"
        self._store = PrefixStore(prefix, store.clone())  # a connection answers one caller at a time
        self._rank, self._num_ranks, self._timeout = rank, num_ranks, timeout_seconds
        self._meetings = 0
        self._store.set(f"process/{rank}", json.dumps(_this_process()))
        stop = threading.Event()
        beats = PrefixStore(prefix, store.clone())
        interval = min(_LONGEST_INTERVAL, timeout_seconds / 4)
        thread = threading.Thread(target=_beat, args=(beats, rank, interval, stop), name="heartbeat", daemon=True)
        thread.start()
        weakref.finalize(self, _end, beats, rank, stop, thread)

    def meet(self) -> None:
        """Wait until every rank has called this as often as this one.

        Raises:
            TrainingError: A rank that is waited for has ended, or has been silent for too long.
        """
        number = self._meetings
        self._meetings += 1
        began = time.monotonic()
        try:
            self._arrive(number)
            watch = _Watch(self._store, self._timeout)
            while not self._store.check([f"all/{number}"]):
                waited = time.monotonic() - began
                if waited > 0.1:
                    watch.look(self._missing(number), waited)
                time.sleep(min(0.2, waited / 50 + 1e-4))
        except DistError as error:
            raise TrainingError(
                "The store of the process group is gone: the first rank, or the program that launched it, has ended. "
                "See their logs; the same command with --train.resume auto goes on."
            ) from error

    def _arrive(self, number: int) -> None:
        self._store.set(f"at/{self._rank}", str(number))
        if self._store.add(f"count/{number}", 1) < self._num_ranks:
            return
        self._store.set(f"all/{number}", "")
        if number:  # everybody has left the meeting before this one
            for name in ("count", "all"):
                self._store.delete_key(f"{name}/{number - 1}")

    def _missing(self, number: int) -> list[int]:
        """Return the ranks that are still on their way to a meeting."""
        others = [rank for rank in range(self._num_ranks) if rank != self._rank]
        arrived = [rank for rank in others if self._store.check([f"at/{rank}"])]
        there = {rank for rank in arrived if int(self._store.get(f"at/{rank}")) >= number}
        return [rank for rank in others if rank not in there]


class _Watch:
    """Whether ranks still beat, by this process's own clock."""

    def __init__(self, store: Any, timeout_seconds: float) -> None:
        self._store, self._timeout = store, timeout_seconds
        self._seen: dict[int, tuple[int, float]] = {}  # rank: its last count, and when that was first seen
        self._machine = _this_process()[0]
        self._processes: dict[int, tuple[str | None, int, int]] = {}  # rank: what its process is, see _this_process

    def look(self, ranks: list[int], waited: float) -> None:
        for rank in ranks:
            if self._store.check([f"gone/{rank}"]) or self._is_dead(rank):
                raise TrainingError(
                    f"Rank {rank} has ended while the others wait for it. See its log; the same command with "
                    "--train.resume auto goes on."
                )
            count = self._store.add(f"beat/{rank}", 0)
            last, since = self._seen.get(rank, (-1, 0.0))
            if count != last:
                self._seen[rank] = (count, waited)
            elif waited - since > self._timeout:
                raise TrainingError(
                    f"Rank {rank} has been silent for {waited - since:.0f} s, longer than "
                    f"train.rank_timeout_seconds={self._timeout:g}: its process or its machine has ended or stands "
                    "still. See its log; the same command with --train.resume auto goes on."
                )

    def _is_dead(self, rank: int) -> bool:
        """Whether a rank was a process of this machine and is none any more."""
        if rank not in self._processes:
            if not self._store.check([f"process/{rank}"]):
                return False
            self._processes[rank] = json.loads(self._store.get(f"process/{rank}"))
        machine, pid, began = self._processes[rank]
        if machine is None or machine != self._machine:
            return False
        try:
            state, since = _of_process(pid)
        except OSError:
            return True
        return since != began or state in _ENDED


def _this_process() -> tuple[str | None, int, int]:
    """Return where numbers of processes mean the same (None: unknown), this process's own, and when it began."""
    try:  # containers of one machine each count for themselves
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}", os.getpid(), _of_process(os.getpid())[1]
    except OSError:  # not Linux
        return None, os.getpid(), 0


def _of_process(pid: int) -> tuple[str, int]:
    """Return the state of a process of this machine, and when it began in ticks since the machine did.

    A clock that is set changes when psutil says that a process began.
    """
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _beat(store: Any, rank: int, interval: float, stop: threading.Event) -> None:
    with contextlib.suppress(DistError):  # the store ends with the process that holds it
        while True:
            store.add(f"beat/{rank}", 1)
            if stop.wait(interval):
                return


def _end(store: Any, rank: int, stop: threading.Event, thread: threading.Thread) -> None:
    """Stop beating and say so, that nobody waits for this rank until its silence is noticed."""
    stop.set()
    thread.join(timeout=2 * _LONGEST_INTERVAL)
    with contextlib.suppress(DistError):
        store.set(f"gone/{rank}", "")
