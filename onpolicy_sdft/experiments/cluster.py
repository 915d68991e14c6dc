"""Commands of a sweep as jobs under Slurm, through submitit."""

from __future__ import annotations

import importlib.util
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.errors import ConfigError, MissingDependencyError
from onpolicy_sdft.runs.commands import Finish, run_logged, telling_line
from onpolicy_sdft.runs.signals import Signals

if TYPE_CHECKING:
    from onpolicy_sdft.config.sweep import SweepConfig

_POLL_SECONDS = 1.0
_CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class LoggedCommand:
    """What a job does. Runs resume, so a job that is preempted or out of time is queued again as it is."""

    command: tuple[str, ...]
    log: str

    def __call__(self) -> Finish:
        """Run the command to its end."""
        return run_logged(self.command, Path(self.log))

    def checkpoint(self) -> Any:
        """Return what submitit queues again; the command is ended and saves its state meanwhile."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def check_jobs(config: SweepConfig) -> None:
    """Make sure that jobs can be submitted; nothing is left behind.

    Raises:
        ConfigError: submitit knows no such parameter, or there is no such cluster here.
        MissingDependencyError: submitit is not installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        _executor(config, Path(scratch))


def submitit_start(config: SweepConfig, signals: Signals) -> Callable[[Sequence[str], Path], Finish]:
    """Return what submits a command as a job and waits for it; for many threads at once.

    A signal cancels the job; the run saves its state then.

    Args:
        config: Its ``slurm`` are the parameters; submitit's own files go to ``slurm`` in the sweep's directory.
        signals: Filled by whoever catches them.

    Raises:
        SdftError: As :func:`check_jobs`.
    """
    executor = _executor(config, Path(config.output_dir) / "slurm")
    one_at_a_time = threading.Lock()  # submitit says nothing about threads

    def start(command: Sequence[str], log: Path) -> Finish:
        if signals:
            return Finish(128 + signals.numbers[-1], "not started", 0.0)
        began = time.monotonic()
        with one_at_a_time:
            executor.update_parameters(name=f"sdft-{log.stem}"[:64])
            job = executor.submit(LoggedCommand(tuple(command), str(log)))
        return _wait(job, signals, log, began)

    return start


def _executor(config: SweepConfig, folder: Path) -> Any:
    if importlib.util.find_spec("submitit") is None:
        raise MissingDependencyError(
            "launcher=submitit needs the package submitit. Fix: pip install 'onpolicy_sdft[slurm]', or "
            "--launcher local."
        )
    import submitit

    # By itself submitit would take this machine where there is no Slurm.
    cluster = str(config.slurm.get(_CLUSTER, "slurm"))
    parameters = {name: value for name, value in config.slurm.items() if name != _CLUSTER}
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**parameters)
    except (NameError, ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"slurm={config.slurm!r} is not usable: {' '.join(str(error).split())} Fix: other parameters, "
            "cluster: local to try it on this machine, or --launcher local."
        ) from error
    return executor


def _wait(job: Any, signals: Signals, log: Path, began: float) -> Finish:
    """Wait for a job, cancelling it once a signal arrives."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    num_passed_on = 0
    while not job.done():
        if len(signals.numbers) > num_passed_on:
            num_passed_on = len(signals.numbers)
            job.cancel(check=False)
        time.sleep(_POLL_SECONDS)
    seconds = time.monotonic() - began
    if num_passed_on:
        return Finish(128 + signals.numbers[-1], f"job {job.job_id} was cancelled", seconds)
    try:
        finish: Finish = job.result()
    except (FailedJobError, UncompletedJobError) as error:
        return Finish(1, f"job {job.job_id}: {telling_line(str(error))} (its log: {job.paths.stderr})", seconds)
    return finish
