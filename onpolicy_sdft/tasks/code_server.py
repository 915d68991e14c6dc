"""Processes that check code, kept between checks: starting an interpreter takes longer than most programs run."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from onpolicy_sdft.errors import TaskError

_CHILD = Path(__file__).with_name("code_child.py")
# How long a process may take to start on a busy machine; not part of the code's own time.
_START_SECONDS = 60.0
_REPORT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job."""

    report: bytes  # the line it reported with; empty where it did not
    ended_by: int | None  # the signal that ended its process: 0 for none, None where it had to be stopped


class CodeServers:
    """Servers of ``code_child.py``, one for each check that runs at the same time.

    Each check has a fork of a server for itself. All servers end when this object or the program does.
    """

    def __init__(self) -> None:
        self._idle: list[_Server] = []
        self._all: set[_Server] = set()
        self._lock = threading.Lock()
        weakref.finalize(self, _end_all, self._all)

    def run(self, job: dict[str, object], wall_seconds: float) -> Outcome | None:
        """Run a job; None if it has ended two servers.

        A server that dies is replaced and its job run once more: it may have been the machine, or another program.

        Raises:
            TaskError: If a server does not start, or cannot set the limits.
        """
        for is_repeat in (False, True):
            server = self._new() if is_repeat else self._take()  # those that wait may have died as well
            try:
                outcome = server.run(job, wall_seconds)
            except BaseException as error:  # nobody knows what an interrupted one would answer next
                self._drop(server)
                if not isinstance(error, _ServerEnded):
                    raise
            else:
                with self._lock:
                    self._idle.append(server)
                return outcome
        return None

    def _take(self) -> _Server:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._new()

    def _new(self) -> _Server:
        server = _Server()
        with self._lock:
            self._all.add(server)
        return server

    def _drop(self, server: _Server) -> None:
        with self._lock:
            self._all.discard(server)
        server.end()


def _end_all(servers: set[_Server]) -> None:
    for server in list(servers):
        server.end()


class _ServerEnded(Exception):
    """A server died during a check."""


class _Server:
    """One process of ``code_child.py``."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _start(theirs)
        self._control = ours
        self._control.settimeout(_START_SECONDS)
        try:
            is_serving = self._control.recv(64) == b"serving\n"
        except OSError:
            is_serving = False
        if not is_serving:
            assert self._process.stderr is not None
            said = _last_words(self._process.stderr)
            self.end()
            raise _not_started(said)

    def run(self, job: dict[str, object], wall_seconds: float) -> Outcome:
        """Run a job in a fork of the process, in a directory of its own.

        Raises:
            _ServerEnded: If the process died meanwhile.
        """
        job_end, job_pipe = os.pipe()
        report_pipe, report_end = os.pipe()
        with (
            open(job_pipe, "wb", buffering=0) as job_file,
            open(report_pipe, "rb", buffering=0) as report,
            tempfile.TemporaryDirectory(prefix="code-check-", ignore_cleanup_errors=True) as folder,
        ):
            try:
                socket.send_fds(self._control, [os.fsencode(folder)], [job_end, report_end])
            except OSError as error:
                raise _ServerEnded from error
            finally:
                os.close(job_end)
                os.close(report_end)
            child = self._answer()
            try:
                return self._watch(job, wall_seconds, job_file, report)
            except _ServerEnded:
                with suppress(ProcessLookupError, PermissionError):  # what the server can no longer do
                    os.killpg(child, signal.SIGKILL)
                raise

    def _watch(self, job: dict[str, object], wall_seconds: float, job_file: IO[bytes], report: IO[bytes]) -> Outcome:
        with suppress(BrokenPipeError):
            _write_all(job_file, json.dumps(job).encode())
        job_file.close()
        received = bytearray()
        _receive(report, received, 1, _START_SECONDS)
        if not received.startswith(b"ready\n"):
            self._end_of_check(0.0)  # if the server has died, this says so
            raise _not_started(received.decode(errors="replace").strip())
        deadline = time.monotonic() + wall_seconds
        _receive(report, received, 2, wall_seconds)
        lines = received.split(b"\n")
        has_reported = len(lines) > 2
        ended_by = self._end_of_check(0.0 if has_reported else max(0.0, deadline - time.monotonic()))
        return Outcome(bytes(lines[1]) if has_reported else b"", ended_by)

    def _end_of_check(self, seconds: float) -> int | None:
        """Have the check's process ended, after some seconds in which it may end by itself; return its signal."""
        try:
            self._control.sendall(b"%f" % seconds)
            self._control.settimeout(_START_SECONDS + seconds)
        except OSError as error:
            raise _ServerEnded from error
        answer = self._answer()
        return None if answer < 0 else answer

    def _answer(self) -> int:
        try:
            line = self._control.recv(64)
        except OSError as error:
            raise _ServerEnded from error
        if not line:
            raise _ServerEnded
        return int(line)

    def end(self) -> None:
        """End the process; the check it runs, if any, ends with it."""
        self._control.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


def _start(control: socket.socket) -> subprocess.Popen[bytes]:
    """Start a server, isolated from environment, user site and working directory."""
    # What -I does, but that would also ignore PYTHONHASHSEED: with a random one the order of a set
    # of strings, and with it a verdict, could differ from run to run.
    command = [sys.executable, "-s", "-P", "-B", str(_CHILD)]
    environment = {
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        command,
        stdin=control.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        env=environment,
        start_new_session=True,
    )


def _not_started(said: str) -> TaskError:
    return TaskError(
        f"task python_code: the process that checks code did not start: {said!r}; it needs Linux and a readable "
        f"{sys.executable}"
    )


def _write_all(pipe: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[pipe.write(view) :]


def _receive(pipe: IO[bytes], received: bytearray, num_lines: int, seconds: float) -> None:
    """Read until so many lines are there, the pipe is closed, the time is over or too much came."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while received.count(b"\n") < num_lines and len(received) < _REPORT_BYTES:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return
            part = os.read(pipe.fileno(), _REPORT_BYTES)
            if not part:
                return
            received += part


def _last_words(pipe: IO[bytes]) -> str:
    received = bytearray()
    _receive(pipe, received, 1000, 1.0)
    lines = received.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
