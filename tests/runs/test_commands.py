"""Child commands: their logs, why they failed, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.runs import commands
from onpolicy_sdft.runs.commands import last_reason, run_logged, sdft_command
from onpolicy_sdft.runs.signals import Signals, caught_signals

#: Says that it is ready, and on a signal what a run does: it saves, and exits with the shell's code.
SAVES = """
import signal, sys, time
def stop(number, frame):
    print("saved after", number, flush=True)
    time.sleep(0.3)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, stop)
print("ready", flush=True)
time.sleep(30)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def wait_for(path: Path, text: str) -> None:
    began = time.monotonic()
    while not (path.is_file() and f"\n{text}" in path.read_text()):
        assert time.monotonic() - began < 20, f"{text!r} never came"
        time.sleep(0.01)


def signal_when_ready(log: Path, *numbers: int) -> threading.Thread:
    def send() -> None:
        wait_for(log, "ready")
        for number in numbers:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_a_command_that_ends_well_leaves_both_streams_in_its_log(tmp_path):
    log = tmp_path / "logs" / "a.log"
    finish = run_logged(python("import sys; print('out', flush=True); print('err', file=sys.stderr)"), log)
    first, *printed = log.read_text().splitlines()
    assert first.startswith("$ ")
    assert printed == ["out", "err"]
    assert (finish.returncode, finish.reason) == (0, "")
    assert 0 < finish.seconds < 20


def test_a_second_attempt_is_appended_and_has_its_own_reason(tmp_path):
    log = tmp_path / "a.log"
    assert run_logged(python("print('sdft train: first'); raise SystemExit(2)"), log).reason == "sdft train: first"
    finish = run_logged(python("print('second'); raise SystemExit(3)"), log)
    assert (finish.returncode, finish.reason) == (3, "second")
    assert log.read_text().count("\n$ ") + log.read_text().startswith("$ ") == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("step 3\nsdft train: optim.lr=-1 is not usable.\n", "sdft train: optim.lr=-1 is not usable."),
        ("Traceback (most recent call last):\n  File x\nRuntimeError: no luck\n\n", "RuntimeError: no luck"),
        ("[rank1]: torch.OutOfMemoryError: CUDA\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
         "Root Cause\n=========\n", "[rank1]: torch.OutOfMemoryError: CUDA"),
        ("sdft train: the reason\nTraceback\nsubprocess.CalledProcessError: Command returned non-zero exit status 2.\n",
         "sdft train: the reason"),
        ("only\nlines\n\n", "lines"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_reason_is_the_programs_own_error_else_the_last_one_else_the_last_line(tmp_path, text, reason):
    (tmp_path / "log").write_text(text)
    assert last_reason(tmp_path / "log") == reason


def test_a_command_that_fails_in_silence_still_has_a_reason(tmp_path):
    finish = run_logged(python("raise SystemExit(7)"), tmp_path / "a.log")
    assert (finish.returncode, finish.reason) == (7, f"exit code 7, and nothing in {tmp_path / 'a.log'}")


def test_a_command_that_was_killed_says_by_which_signal(tmp_path):
    code = "import os; print('at step 5', flush=True); os.kill(os.getpid(), 9)"
    finish = run_logged(python(code), tmp_path / "a.log")
    assert finish.returncode == 137
    assert finish.reason.startswith("killed by SIGKILL")
    assert finish.reason.endswith("at step 5")


def test_echo_passes_on_what_is_printed_and_the_log_has_it_too(tmp_path, capsys):
    code = "import time; print('one', flush=True); time.sleep(0.2); print('two ünïcode')"
    run_logged(python(code), tmp_path / "a.log", echo=True, environment={"PYTHONIOENCODING": "utf-8"})
    assert capsys.readouterr().err == "one\ntwo ünïcode\n"
    assert (tmp_path / "a.log").read_text().endswith("one\ntwo ünïcode\n")


def test_a_command_gets_the_environment_on_top_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("KEPT", "kept")
    code = "import os; print(os.environ['KEPT'], os.environ['GIVEN'], os.environ['TORCH_ELASTIC_SHUTDOWN_TIMEOUT'])"
    run_logged(python(code), tmp_path / "a.log", environment={"GIVEN": "given"})
    assert (tmp_path / "a.log").read_text().endswith("kept given 280\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_the_command_is_waited_for(tmp_path, number):
    log = tmp_path / "a.log"
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    sender = signal_when_ready(log, number)
    finish = run_logged(python(SAVES), log)
    sender.join()
    assert (finish.returncode, finish.reason) == (128 + number, f"stopped by {number.name}")
    assert log.read_text().splitlines()[-1] == f"saved after {int(number)}"
    assert log.read_text().count("\nsaved after") == 1
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_command_that_ends_well_although_it_was_asked_to_stop_counts_as_stopped(tmp_path):
    log = tmp_path / "a.log"
    code = "import signal, time; signal.signal(15, lambda *a: None); print('ready', flush=True); time.sleep(1)"
    sender = signal_when_ready(log, signal.SIGTERM)
    finish = run_logged(python(code), log)
    sender.join()
    assert finish.returncode == 143


def test_the_terminals_ctrl_c_does_not_reach_the_command_directly(tmp_path):
    run_logged(python("import os; print(os.getpgid(0) == os.getsid(0) == os.getpid())"), tmp_path / "a.log")
    assert (tmp_path / "a.log").read_text().endswith("True\n")


#: A launcher that passes no signal on, as accelerate's is for one process.
LAUNCHES = "import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {code!r}]){then}"


def test_what_a_careless_launcher_started_gets_the_signal_and_is_waited_for(tmp_path):
    log = tmp_path / "a.log"
    sender = signal_when_ready(log, signal.SIGINT)
    finish = run_logged(python(LAUNCHES.format(code=SAVES, then=".wait()")), log)
    sender.join()
    assert finish.returncode == 130
    assert log.read_text().count("\nsaved after 2") == 1
    assert finish.seconds > 0.3, "it saved for so long"


def test_what_a_failed_launcher_left_behind_is_ended(tmp_path):
    log = tmp_path / "a.log"
    finish = run_logged(python(LAUNCHES.format(code=SAVES, then="; import time; time.sleep(0.5); sys.exit(3)")), log)
    assert finish.returncode == 3
    assert log.read_text().endswith("\nsaved after 15\n")


def test_what_does_not_end_is_killed_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "_PATIENCE_SECONDS", 0.3)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    launches = LAUNCHES.format(code=deaf, then="; import time; time.sleep(0.5); sys.exit(3)")
    assert run_logged(python(launches), tmp_path / "a.log").seconds < 20


def test_commands_in_threads_all_get_the_signal_and_no_other_is_started(tmp_path):
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    finishes = {}
    with caught_signals() as signals:

        def work(log: Path) -> None:
            finishes[log] = run_logged(python(SAVES), log, signals=signals)

        threads = [threading.Thread(target=work, args=(log,)) for log in logs]
        for thread in threads:
            thread.start()
        for log in logs:
            wait_for(log, "ready")
        os.kill(os.getpid(), signal.SIGINT)
        for thread in threads:
            thread.join()
        late = run_logged(python("print('never')"), tmp_path / "c.log", signals=signals)
    assert [finishes[log].returncode for log in logs] == [130, 130]
    assert all("\nsaved after 2\n" in log.read_text() for log in logs)
    assert late.returncode == 130
    assert not (tmp_path / "c.log").exists()


def test_no_signal_is_no_stop():
    assert not Signals()
    with caught_signals() as signals:
        assert not signals


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise")
def test_a_command_does_not_outlive_a_parent_that_was_killed(tmp_path):
    log = tmp_path / "a.log"
    code = (
        "import sys; from pathlib import Path\n"
        "from onpolicy_sdft.runs.commands import run_logged\n"
        f"run_logged([sys.executable, '-S', '-c', {SAVES!r}], Path({str(log)!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        wait_for(log, "ready")
        parent.kill()
    wait_for(log, "saved after 15")


def test_the_warning_of_slurm_does_not_end_a_command(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print('alive')"
    assert run_logged(python(code), tmp_path / "a.log").returncode == (0 if sys.platform == "linux" else 140)


def test_a_program_that_is_not_there_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"no program 'acelerate'.*Fix"):
        run_logged(["acelerate", "launch"], tmp_path / "a.log")
    assert not (tmp_path / "a.log").exists()


def test_a_verb_is_started_by_this_python_or_by_a_launcher():
    here = [sys.executable, "-m", "onpolicy_sdft", "train", "--config", "a.yaml", "--train.seed", "3"]
    assert sdft_command("train", "--config", Path("a.yaml"), "--train.seed", 3) == here
    launch = ["accelerate", "launch", "--config_file", "zero2.yaml"]
    assert sdft_command("train", "--config", "a.yaml", launch=launch) == [
        *launch, "-m", "onpolicy_sdft", "train", "--config", "a.yaml",
    ]  # fmt: skip


def test_a_command_of_this_program_fails_with_its_own_line(tmp_path):
    finish = run_logged(sdft_command("train", "--optim.lr", "-1"), tmp_path / "a.log")
    assert finish.returncode == 2
    assert finish.reason == "sdft train: optim.lr=-1.0 is not usable: it must be above 0."
