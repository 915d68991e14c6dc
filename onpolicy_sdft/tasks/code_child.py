"""Runs one piece of code and its tests under limits, and reports what happened.

``python_code`` starts this file as a script in a process of its own; nothing imports it. It reads
one JSON job from standard input and writes two lines to what was its standard output: ``ready``
once the limits hold, then ``{"status": ..., "detail": ...}``. Statuses: ok, syntax_error, error,
tests_failed, memory_limit.
"""

import _thread
import contextlib
import ctypes
import json
import os
import resource
import sys
import types
from typing import Any, NoReturn

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_NOBODY = 65534
_REFUSED_PREFIXES = ("socket.", "subprocess.", "ctypes.dlopen", "pty.", "shutil.")
_REFUSED = frozenset(
    {
        "os.chflags",
        "os.chmod",
        "os.chown",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.kill",
        "os.killpg",
        "os.link",
        "os.mkdir",
        "os.posix_spawn",
        "os.remove",
        "os.removexattr",
        "os.rename",
        "os.rmdir",
        "os.setxattr",
        "os.spawn",
        "os.symlink",
        "os.system",
        "os.truncate",
        "os.utime",
    }
)
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Take the job, give up rights, run the code, report."""
    job = json.load(sys.stdin)
    report = os.dup(1)
    # Output of the code goes nowhere, so no amount of it can fill anything; input() ends at once.
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    _leave_network_and_root()
    _limit(job["cpu_seconds"], job["memory_bytes"], job["file_bytes"])
    os.dup2(null, 2)  # only now: until here a traceback tells the parent what failed
    _thread.start_new_thread = _no_thread  # the limit on processes alone does not bind root
    sys.addaudithook(_guard(os.path.realpath(os.getcwd()) + os.sep))
    os.write(report, b"ready\n")
    status, detail = run(job["code"], job["tests"])
    os.write(report, json.dumps({"status": status, "detail": detail[:300]}).encode() + b"\n")
    os._exit(0)  # no finalisers of the code's own


def run(code: str, tests: list[str]) -> tuple[str, str]:
    """Execute the code, then each test in its name space, up to the first failure."""
    module = types.ModuleType("completion")  # not __main__: a demo under that guard is not run
    sys.modules["completion"] = module  # dataclasses look their module up
    try:
        compiled = compile(code, "<completion>", "exec")
    except (SyntaxError, ValueError) as error:
        return "syntax_error", _describe(error)
    try:
        exec(compiled, module.__dict__)
    except BaseException as error:  # SystemExit as well: leaving early is no success
        return _status(error), _describe(error)
    for test in tests:
        try:
            exec(compile(test, "<tests>", "exec"), module.__dict__)
        except AssertionError as error:
            return "tests_failed", _describe(error)
        except BaseException as error:
            return _status(error), _describe(error)
    return "ok", ""


def _status(error: BaseException) -> str:
    return "memory_limit" if isinstance(error, MemoryError) else "error"


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # a broken __str__ of the code's own
        return type(error).__name__


def _leave_network_and_root() -> None:
    """Move to an empty network name space and from root to nobody, as far as the system permits."""
    libc = ctypes.CDLL(None)
    alone = hasattr(libc, "unshare") and libc.unshare(_CLONE_NEWNET) == 0
    if os.geteuid() == 0:
        # Root is exempt from the limit on processes, and may write anywhere.
        with contextlib.suppress(OSError):
            os.chown(".", _NOBODY, _NOBODY)
            os.setegid(_NOBODY)
            os.seteuid(_NOBODY)
            readable = os.access(os.__file__, os.R_OK, effective_ids=True)
            os.seteuid(0)
            os.setegid(0)
            if readable:  # else later imports would fail, as with an interpreter under /root
                os.setgroups([])
                os.setresgid(_NOBODY, _NOBODY, _NOBODY)
                os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    if not alone and hasattr(libc, "unshare"):
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _limit(cpu_seconds: int, memory_bytes: int, file_bytes: int) -> None:
    wanted = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NPROC: 0,  # no new process or thread
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _no_thread(*_: Any, **__: Any) -> NoReturn:
    raise PermissionError("threads are off while code is checked")


def _guard(folder: str) -> Any:
    """Return an audit hook that refuses network, processes and writes outside the folder.

    It stops accidents whatever the system permits; code that means to get round it can.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & _WRITE_FLAGS or isinstance(path, int) or path == os.devnull:
                return
            if os.path.realpath(os.fsdecode(path)).startswith(folder):
                return
        elif event not in _REFUSED and not event.startswith(_REFUSED_PREFIXES):
            return
        raise PermissionError(f"{event} is off while code is checked")

    return hook


if __name__ == "__main__":
    main()
