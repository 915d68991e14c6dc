from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.python_code import PythonCode
from onpolicy_sdft.types import Demonstration, Turn

ROW = Demonstration("row-1", (Turn("user", "Write f"),), "", {"tests": ["assert f(1) == 2"]})
RIGHT = "def f(x):\n    return x + 1\n"
#: Calls of the system that no audit hook sees.
UNSEEN = "import ctypes, os\nlibc = ctypes.pythonapi\n"


@pytest.fixture
def task() -> PythonCode:
    made = load_task("python_code", {"allow_execution": True, "cpu_seconds": 2, "wall_seconds": 5.0})
    assert isinstance(made, PythonCode)
    return made


def servers(task: PythonCode) -> set[int]:
    return {server._process.pid for server in task._servers._all}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_server_is_kept_for_checks_in_turn_and_as_many_as_run_at_once(task: PythonCode) -> None:
    assert all(task.check(RIGHT, ROW).correct for _ in range(3))
    assert len(servers(task)) == 1
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(lambda _: task.check(f"{RIGHT}import time\ntime.sleep(0.3)", ROW).correct, range(3)))
    assert len(servers(task)) == 3


def test_nothing_of_a_check_reaches_the_next_one(task: PythonCode) -> None:
    leave = "import builtins, json, os, sys\nbuiltins.left = sys.left = json.dumps = os.left = 1\nopen('left', 'w')\n"
    assert not task.check(leave + RIGHT, ROW).correct
    look = "import builtins, json, os, sys\nassert not any(hasattr(m, 'left') for m in (builtins, sys, os))\n"
    assert task.check(f"{look}assert json.dumps(1) == '1' and not os.listdir('.')\n{RIGHT}", ROW).correct
    assert len(servers(task)) == 1


def test_the_server_never_holds_a_program(task: PythonCode) -> None:
    secret = "a secret of the first job"
    assert task.check(f"{RIGHT}secret = {secret!r}", ROW).correct
    (server,) = servers(task)
    found = []
    with open(f"/proc/{server}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{server}/maps").read_text().splitlines():
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            if " rw" in line:
                memory.seek(first)
                found.append(memory.read(last - first))
    assert any(b"code_child" in part for part in found)
    assert not any(secret.encode() in part for part in found)


def test_a_program_that_ends_the_server_is_wrong_and_the_next_has_another(task: PythonCode) -> None:
    assert task.check(RIGHT, ROW).correct
    before = servers(task)
    result = task.check(f"{UNSEEN}libc.kill(os.getppid(), 9)\n{RIGHT}import time\ntime.sleep(1)", ROW)
    assert result.reason == "crashed" or result.correct  # nobody may not end a server of root's
    assert result.correct == bool(before & servers(task))
    assert task.check(RIGHT, ROW).correct


def test_a_server_that_was_killed_between_checks_is_replaced(task: PythonCode) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda _: task.check(f"{RIGHT}import time\ntime.sleep(0.3)", ROW).correct, range(2)))
    for pid in servers(task):
        os.kill(pid, signal.SIGKILL)
    assert task.check(RIGHT, ROW).correct


def test_what_leaves_the_session_of_a_check_ends_with_it(task: PythonCode) -> None:
    fork = "if libc.fork() == 0:\n    libc.setsid()\n    import time\n    time.sleep(60)\n    os._exit(0)\n"
    task.check(UNSEEN + fork + RIGHT, ROW)  # refused by the limit on processes, unless it is root
    (server,) = servers(task)
    assert children(server) == []


def test_a_check_sees_none_of_the_descriptors_of_the_trainer(task: PythonCode, tmp_path: Path) -> None:
    with open(tmp_path / "kept", "w") as file:
        os.set_inheritable(file.fileno(), True)
        look = "import os\nnames = [os.path.realpath(f'/proc/self/fd/{n}') for n in range(64)]\n"
        assert task.check(
            f"{look}assert not any('kept' in name or 'socket:' in name for name in names)\n{RIGHT}", ROW
        ).correct


SCRIPT = """
import os, sys, threading, time
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.types import Demonstration, Turn
task = load_task("python_code", {"allow_execution": True, "wall_seconds": 60.0, "cpu_seconds": 60})
row = Demonstration("r", (Turn("user", "W"),), "", {"tests": ["assert True"]})
assert task.check("def f(): pass", row).correct
threading.Thread(target=lambda: task.check("import time\\nwhile True: time.sleep(1)", row), daemon=True).start()
time.sleep(0.5)
(server,) = (server._process.pid for server in task._servers._all)
print(server, *open(f"/proc/{server}/task/{server}/children").read().split(), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_no_process_is_left_behind(how: str) -> None:
    command = [sys.executable, "-c", SCRIPT, how]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    server, check = map(int, found.stdout.split())
    deadline = time.monotonic() + 10
    while (is_running(server) or is_running(check)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(server)
    assert not is_running(check)
