"""Child commands with a log each: signals are passed on to them, and none outlives its parent in silence."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.runs.signals import Signals, caught_signals

#: Of a command that saved its state after SIGINT or SIGTERM.
STOPPED_CODES = (130, 143)

#: Of a training run that the gate stopped, and whose model is what it started from.
REFUSED_CODE = 3

_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 300.0  # for what a launcher left behind; then it is killed
_TAIL_BYTES = 1 << 16
_TOLD = re.compile(r"sdft \w+: ")
#: The last line of a traceback, but not of a launcher's, which has its own say after the rank that failed.
_ERROR = re.compile(r"(\[rank\d+\]: *)?[\w.]*(Error|Exception|Interrupt)\b(?<!ChildFailedError)(?!.*exit status)")

#: Becomes the command in a process that Linux ends with SIGTERM once its parent is gone, however that died
#: (PR_SET_PDEATHSIG). A hook between fork and exec could do it too, but is not safe with threads. SIGUSR2 is Slurm's
#: warning that time is up, sent to all processes of a job: one of them heeds it, the others must not die of it.
_BOUND_TO_PARENT = (
    "import ctypes, os, signal, sys\n"
    "signal.signal(signal.SIGUSR2, signal.SIG_IGN)\n"
    "ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(143)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)

#: torch's launcher kills ranks that are not gone this long after a signal: they finish a step and save first.
_LAUNCHER_PATIENCE = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "280"}


@dataclass(frozen=True, slots=True)
class Finish:
    """How a command ended."""

    returncode: int  # 128 + n where signal n was passed on to it, or killed it
    reason: str  # the line of its log that says why; empty when the code is 0
    seconds: float


def sdft_command(verb: str, *arguments: object, launch: Sequence[str] = ()) -> list[str]:
    """Return the command line of a verb of this program.

    Args:
        verb: E.g. ``train``.
        *arguments: What follows it; anything with a text.
        launch: What starts it, e.g. ``accelerate launch --config_file launch/accelerate/zero2.yaml``; empty: this
            Python.

    Returns:
        The command.
    """
    return [*(launch or [sys.executable]), "-m", "onpolicy_sdft", verb, *map(str, arguments)]


def require_command(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Make sure that a command can be started.

    Raises:
        ConfigError: There is no such program.
    """
    path = {**os.environ, **(environment or {})}.get("PATH")
    if shutil.which(command[0], path=path) is None:
        raise ConfigError(
            f"The command {shlex.join(command)!r} cannot be started: there is no program {command[0]!r}. Fix: "
            "install it, or give its whole path."
        )


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    echo: bool = False,
    environment: Mapping[str, str] | None = None,
    signals: Signals | None = None,
) -> Finish:
    """Run a command to its end.

    SIGINT and SIGTERM go to the command, which saves its state and exits; a second one goes there as well. It has a
    process group of its own, so that a Ctrl-C on the terminal reaches it once, and all of the group is waited for. If
    this process dies, the command gets SIGTERM (on Linux).

    Args:
        command: Program and arguments.
        log: What the command prints on either stream is appended here.
        echo: Print it to standard error as well, as it comes.
        environment: Variables on top of this process's own.
        signals: Caught by the caller, who runs this in threads; None: caught here.

    Returns:
        How it ended. Once signals were caught, no command is started, and one that had just ended well counts as
        stopped: the caller is to stop too.

    Raises:
        ConfigError: There is no such program.
    """
    if signals is None:
        with caught_signals() as own:
            return run_logged(command, log, echo=echo, environment=environment, signals=own)
    require_command(command, environment)
    if signals:
        return Finish(128 + signals.numbers[-1], f"not started: {_name(signals.numbers[-1])}", 0.0)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        stream.write(f"$ {shlex.join(command)}\n".encode())
        stream.flush()
        start = stream.tell()
        began = time.monotonic()
        process = subprocess.Popen(
            _bound_to_parent(command), stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env={**_LAUNCHER_PATIENCE, **os.environ, **(environment or {})}, start_new_session=True,
        )  # fmt: skip
    try:
        code = _wait(process, signals, log, start if echo else None)
    except BaseException:
        _signal(process.pid, signal.SIGTERM)
        process.wait()
        raise
    return _finish(code, signals, log, start, time.monotonic() - began)


def _bound_to_parent(command: Sequence[str]) -> list[str]:
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _BOUND_TO_PARENT, str(os.getpid()), *command]


def _wait(process: subprocess.Popen[bytes], signals: Signals, log: Path, echo_from: int | None) -> int:
    """Wait for a command, passing signals on, and its log from a byte on to standard error if there is one.

    A launcher may be gone before what it launched: after a signal or a failure its process group is waited for as well.
    """
    num_passed_on, patience_ends = 0, math.inf
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
        for number in signals.numbers[num_passed_on:]:
            _signal(process.pid, number)
            num_passed_on += 1
        if echo_from is not None:
            echo_from = _echo(log, echo_from)
        if process.returncode is None:
            continue
        if (process.returncode == 0 and not signals) or not _members(process.pid):
            return process.returncode
        if patience_ends == math.inf:
            patience_ends = time.monotonic() + _PATIENCE_SECONDS
            if not num_passed_on:
                _signal(process.pid, signal.SIGTERM)
        elif time.monotonic() > patience_ends:
            _signal(process.pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _signal(group: int, number: int) -> None:
    """Send a signal to a process group: a launcher need not pass it on. Code that is checked has groups of its own."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _members(group: int) -> list[int]:
    """Return the processes of a group that are alive."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError, PermissionError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group:
                found.append(process.pid)
    return found


def _echo(log: Path, start: int) -> int:
    """Print a log from a byte on; return where it ends now."""
    with log.open("rb") as stream:
        stream.seek(start)
        new = stream.read()
    if new:
        sys.stderr.write(new.decode("utf-8", "replace"))
        sys.stderr.flush()
    return start + len(new)


def _finish(code: int, signals: Signals, log: Path, start: int, seconds: float) -> Finish:
    if signals:
        number = signals.numbers[-1]
        return Finish(128 + number, f"stopped by {_name(number)}", seconds)
    if code == 0:
        return Finish(0, "", seconds)
    line = last_reason(log, start)
    if code > 0:
        return Finish(code, line or f"exit code {code}, and nothing in {log}", seconds)
    hint = ", as Linux does to what takes too much memory" if code == -signal.SIGKILL else ""
    last = f"; its last line: {line}" if line else ""
    return Finish(128 - code, f"killed by {_name(-code)}{hint}{last}", seconds)


def last_reason(log: Path, start: int = 0) -> str:
    """Return the line of a log that says why a command failed: its last error, or the last line that is not empty.

    Args:
        log: What it printed.
        start: Where in the log it began, in bytes.

    Returns:
        One line; empty when there is none.
    """
    with log.open("rb") as stream:
        stream.seek(max(start, log.stat().st_size - _TAIL_BYTES))
        return telling_line(stream.read().decode("utf-8", "replace"))


def telling_line(text: str) -> str:
    """Return the line that says why a command failed, of what it printed; see :func:`last_reason`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told, errors = ([line for line in lines if kind.match(line)] for kind in (_TOLD, _ERROR))
    return next((found[-1] for found in (told, errors, lines) if found), "")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
