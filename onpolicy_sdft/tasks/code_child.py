"""Runs pieces of code with their tests under limits, each in a fork of its own, and reports what happened.

``code_server`` starts this file as a script, with one end of a socket as its standard input; nothing imports it. The
process is a server that runs no code itself and never sees any: for each check it gets a directory and two pipes, and
forks a child. The child reads one JSON job from the first pipe and writes two lines to the second: ``ready`` once the
limits hold, then ``{"status": ..., "detail": ..., "test": ..., "value": ...}``: what was raised, by which line of the
tests, and what stood left of its comparison. Statuses: ok, syntax_error, error, tests_failed, memory_limit.
Where the limits cannot be set, the first line says why instead.
"""

import _thread
import ast
import contextlib
import ctypes
import json
import os
import reprlib
import resource
import signal
import socket
import sys
import time
import types
from typing import Any, NoReturn

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
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
_KEPT = "_left_of_the_comparison"  # the name under which a test keeps it
_REPORTED = 300  # characters of each text
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Serve checks, one at a time, until the other end of the socket is closed."""
    control, server = socket.socket(fileno=os.dup(0)), os.getpid()
    # Output of the code goes nowhere, so no amount of it can fill anything; input() ends at once.
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc, "prctl", _PR_SET_CHILD_SUBREAPER, 1)  # what a check leaves behind becomes a child of this process
    is_alone = _leave_network(libc)
    control.sendall(b"serving\n")
    while True:
        folder, pipes, _, _ = socket.recv_fds(control, 4096, 2)
        if not folder:
            return
        job, report = pipes
        child = os.fork()
        if not child:
            _check(os.fsdecode(folder), job, report, server, libc, is_alone)
        for pipe in pipes:
            os.close(pipe)
        try:
            control.sendall(b"%d\n" % child)
            seconds = control.recv(64)
            ended = _wait(child, float(seconds)) if seconds else None
        finally:
            _kill(child)
        if not seconds:
            return
        control.sendall(b"%d\n" % (-1 if ended is None else ended))


def _wait(child: int, seconds: float) -> int | None:
    """Return the signal that ended a child (0: none), or None if it lives past the time."""
    deadline = time.monotonic() + seconds
    while True:
        # WNOWAIT leaves the process to be reaped after its group is killed.
        state = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if state is not None:
            return 0 if state.si_code == os.CLD_EXITED else state.si_status
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


def _kill(child: int) -> None:
    """End a check with all that it started: its session, and what left the session and has become a child here."""
    # Before it is reaped: until then its group id cannot be another's. It may not have made its session yet.
    for end in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with contextlib.suppress(ChildProcessError, FileNotFoundError):  # no children left; a system without the list
        while True:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            for other in _children():
                os.kill(other, signal.SIGKILL)
            time.sleep(0.001)


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def _check(folder: str, job_pipe: int, report: int, server: int, libc: Any, is_alone: bool) -> NoReturn:
    """Take the job, give up rights, run the code, report: what a forked child does."""
    try:
        os.setsid()
        with open(job_pipe) as pipe:
            job = json.load(pipe)
        os.closerange(3, report)  # the server's socket among them
        os.closerange(report + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        os.chdir(folder)
        os.environ.update(HOME=folder, TMPDIR=folder)
        _leave_root()
        if not is_alone:
            _leave_network(libc)
        _call(libc, "prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it
        if os.getppid() != server:
            os._exit(1)
        _limit(job["cpu_seconds"], job["memory_bytes"], job["file_bytes"])
        os.dup2(0, 2)  # only now: until here a traceback could be read
        _thread.start_new_thread = _no_thread  # the limit on processes alone does not bind root
        sys.addaudithook(_guard(os.path.realpath(os.getcwd()) + os.sep))
    except BaseException as error:
        os.write(report, f"{_describe(error)}\n".encode())
        os._exit(1)
    try:
        os.write(report, b"ready\n")
        outcome = run(job["code"], job["tests"])
        os.write(report, json.dumps({name: text[:_REPORTED] for name, text in outcome.items()}).encode() + b"\n")
    finally:
        os._exit(0)  # no finalisers of the code's own, and no way back into the server's loop


def run(code: str, tests: list[str]) -> dict[str, str]:
    """Execute the code, then each test in its name space, up to the first failure."""
    module = types.ModuleType("completion")  # not __main__: a demo under that guard is not run
    sys.modules["completion"] = module  # dataclasses look their module up
    try:
        compiled = compile(code, "<completion>", "exec")
    except (SyntaxError, ValueError) as error:
        return {"status": "syntax_error", "detail": _describe(error)}
    try:
        exec(compiled, module.__dict__)
    except BaseException as error:  # SystemExit as well: leaving early is no success
        return {"status": _status(error), "detail": _describe(error)}
    for test in tests:
        try:
            exec(compile(_remembering(test), "<tests>", "exec"), module.__dict__)
        except BaseException as error:
            status = "tests_failed" if isinstance(error, AssertionError) else _status(error)
            report = {"status": status, "detail": _describe(error)}
            with contextlib.suppress(Exception):  # no memory left, a broken __repr__ of the code's own
                report |= _place(error, test)
            return report
    return {"status": "ok"}


def _remembering(test: str) -> ast.Module:
    """Have each ``assert left == right`` keep what stands left, so that it need not be computed again to be told."""
    tree = ast.parse(test)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare):
            left = node.test.left
            name = ast.copy_location(ast.Name(_KEPT, ast.Store()), left)
            node.test.left = ast.copy_location(ast.NamedExpr(name, left), left)
    return tree


def _place(error: BaseException, test: str) -> dict[str, str]:
    """Return the statement of a test that raised, and what stood left of a comparison that does not hold."""
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            found = trace
        trace = trace.tb_next
    if found is None:
        return {}
    # Nodes keep their places in the text, also those that remember.
    line, _, column, _ = list(found.tb_frame.f_code.co_positions())[found.tb_lasti // 2]
    around = [
        node
        for node in ast.walk(ast.parse(test))  # from outside to inside
        if isinstance(node, ast.stmt)
        and (node.lineno, node.col_offset) <= (line, column) < (node.end_lineno, node.end_col_offset)
    ]
    statement = around[-1]
    place = {"test": ast.unparse(statement)}
    if not isinstance(statement, ast.Assert) or not isinstance(statement.test, ast.Compare):
        return place
    if isinstance(error, AssertionError) and found.tb_next is None:  # not raised by the code itself
        short = reprlib.Repr()
        short.maxstring = short.maxother = short.maxlong = 100
        short.maxlist = short.maxtuple = short.maxdict = short.maxset = 20
        place["value"] = f"{ast.unparse(statement.test.left)} is {short.repr(found.tb_frame.f_locals[_KEPT])}"
    return place


def _status(error: BaseException) -> str:
    return "memory_limit" if isinstance(error, MemoryError) else "error"


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # a broken __str__ of the code's own
        return type(error).__name__


def _call(libc: Any, name: str, *arguments: int) -> bool:
    """Call a function of the system where it has it, and say whether it did what it should."""
    return hasattr(libc, name) and getattr(libc, name)(*arguments) == 0


def _leave_network(libc: Any) -> bool:
    """Move to an empty network name space, as far as the system permits."""
    if _call(libc, "unshare", _CLONE_NEWNET):
        return True
    # Root would lose its way to become nobody.
    return os.geteuid() != 0 and _call(libc, "unshare", _CLONE_NEWUSER | _CLONE_NEWNET)


def _leave_root() -> None:
    """Become nobody, where root."""
    if os.geteuid() != 0:
        return
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
