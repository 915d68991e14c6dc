"""Jobs through submitit, on this machine: there is no Slurm in tests."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from onpolicy_sdft.config.sweep import SweepConfig
from onpolicy_sdft.errors import ConfigError, MissingDependencyError
from onpolicy_sdft.experiments import cluster
from onpolicy_sdft.runs.signals import Signals

SAVES = (
    "import os, signal, time\n"
    "save = lambda *a: (os.write(1, b'saved\\n'), os._exit(130))\n"  # two signals may come at once
    "signal.signal(signal.SIGINT, save); signal.signal(signal.SIGTERM, save)\n"
    "print('working', flush=True); time.sleep(60)\n"
)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.02)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job cannot be cancelled where it is ignored

    def make(**slurm) -> SweepConfig:
        parameters = {"timeout_min": 2, "cluster": "local", **slurm}
        return SweepConfig(launcher="submitit", slurm=parameters, output_dir=str(tmp_path / "sweep"))

    yield make
    signal.signal(signal.SIGINT, before)


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


@pytest.mark.parametrize("where", ["local", "debug"])
def test_a_command_runs_as_a_job_with_its_log_and_its_end(jobs, tmp_path, where):
    start = cluster.submitit_start(jobs(cluster=where), Signals())
    finish = start(python("print('sdft train: no luck'); raise SystemExit(2)"), tmp_path / "a.log")
    assert (finish.returncode, finish.reason) == (2, "sdft train: no luck")
    assert (tmp_path / "a.log").read_text().endswith("sdft train: no luck\n")
    assert (tmp_path / "sweep" / "slurm").is_dir()


def test_several_jobs_run_at_once(jobs, tmp_path):
    """Each waits for the other: one after the other they would wait for ever."""
    start, codes = cluster.submitit_start(jobs(), Signals()), []
    meets = (
        "import pathlib, sys, time\n"
        "mine, other = map(pathlib.Path, sys.argv[1:])\n"
        "mine.touch()\n"
        "while not other.exists(): time.sleep(0.01)\n"
    )

    def work(mine: str, other: str) -> None:
        command = [*python(meets), str(tmp_path / mine), str(tmp_path / other)]
        codes.append(start(command, tmp_path / f"{mine}.log").returncode)

    threads = [threading.Thread(target=work, args=names) for names in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert codes == [0, 0]


def test_a_signal_cancels_the_job_and_the_command_saves(jobs, tmp_path):
    signals, log = Signals(), tmp_path / "a.log"
    start = cluster.submitit_start(jobs(), signals)

    def stop() -> None:
        began = time.monotonic()
        while not (log.is_file() and "\nworking" in log.read_text()) and time.monotonic() - began < 20:
            time.sleep(0.02)
        signals.numbers.append(2)

    thread = threading.Thread(target=stop)
    thread.start()
    finish = start(python(SAVES), log)
    thread.join()
    assert finish.returncode == 130
    assert "was cancelled" in finish.reason
    began = time.monotonic()
    while "\nsaved\n" not in log.read_text():  # on a busy machine the job is gone before its command
        assert time.monotonic() - began < 20, log.read_text()
        time.sleep(0.02)
    assert start(python("print('never')"), tmp_path / "b.log").returncode == 130
    assert not (tmp_path / "b.log").exists()


def test_a_job_that_dies_says_so(jobs, tmp_path):
    start = cluster.submitit_start(jobs(), Signals())
    finish = start(["there-is-no-such-program"], tmp_path / "a.log")
    assert finish.returncode == 1
    assert "no program 'there-is-no-such-program'" in finish.reason


def test_parameters_that_submitit_does_not_know_are_refused_and_leave_nothing(jobs, tmp_path):
    with pytest.raises(ConfigError, match="time_min"):
        cluster.check_jobs(jobs(time_min=5))
    with pytest.raises(ConfigError, match="Fix"):
        cluster.check_jobs(jobs(timeout_min="long"))
    with pytest.raises(ConfigError, match=r"srun|slurm"):
        cluster.check_jobs(jobs(cluster="slurm"))
    cluster.check_jobs(jobs(slurm_partition="gpu", gpus_per_node=1))
    assert not (tmp_path / "sweep").exists()


def test_a_job_that_is_queued_again_is_the_same_job(jobs):
    command = cluster.LoggedCommand(("a", "b"), "log")
    assert command.checkpoint().function == command


def test_without_submitit_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"onpolicy_sdft\[slurm\]"):
        cluster.check_jobs(SweepConfig(launcher="submitit", slurm={"timeout_min": 1}))
