"""Run what is left of a sweep: commands of their own, at most so many at once, and the table after each.

A run is an ordinary ``sdft train`` on its own file of options, so it can be started by hand as well, and whatever
starts a run (``accelerate launch``, Slurm) starts these. Nothing that is done is done again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from onpolicy_sdft.config.load import by_dotted_name, dump_config, load_config
from onpolicy_sdft.config.schema import RunConfig
from onpolicy_sdft.config.sweep import SweepConfig
from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.experiments.children import (
    find_inputs,
    forget_result,
    is_done,
    reason_of,
    refuse_changed,
    scored_alike,
)
from onpolicy_sdft.experiments.sweep_plan import Distilled, Plan, PlannedRun
from onpolicy_sdft.experiments.sweep_results import (
    SWEEP_FILE,
    TABLE_FILE,
    Row,
    read_scores,
    start_rows,
    write_results,
)
from onpolicy_sdft.runs.claim import claimed
from onpolicy_sdft.runs.commands import STOPPED_CODES, Finish, require_command, run_logged, sdft_command
from onpolicy_sdft.runs.files import write_text_atomic
from onpolicy_sdft.runs.progress import Progress, format_seconds
from onpolicy_sdft.runs.signals import Signals

logger = logging.getLogger(__name__)

#: Runs a command, what it prints appended to a log, and waits for it.
Start = Callable[[Sequence[str], Path], Finish]


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """What a sweep left behind."""

    directory: Path
    rows: list[Row]
    table: list[dict[str, Any]]
    signal: int | None  # what ended it before its end


def run_sweep(config: SweepConfig, plan: Plan, start: Start, signals: Signals) -> SweepOutcome:
    """Run what is left of a sweep; after every run its table is written anew.

    Args:
        config: The sweep.
        plan: Its runs.
        start: Runs a command; it is called in threads.
        signals: Filled by whoever catches them; then running commands are waited for, and no other is started.

    Raises:
        SdftError: As :func:`check_startable`.
        RunDirectoryError: Another process is at work in the directory.
    """
    directory = Path(config.output_dir)
    check_startable(config, plan)
    with claimed(directory, "output_dir", "sweep", (SWEEP_FILE, TABLE_FILE)):
        for run in plan.runs:
            write_text_atomic(_options_file(directory, run.name), dump_config(run.config))
        rows = look_up(config, plan, directory)
        work = _Work(config, plan, rows, directory, start)
        table = work.write()
        left = [row for row in rows if row.state != "done" and (row.state != "failed" or config.retry_failed)]
        kept = sum(row.state == "failed" for row in rows) - sum(row.state == "failed" for row in left)
        if kept:
            logger.info(f"{kept} runs failed before and are kept so; --retry_failed true tries them again")
        if left:
            table = work.run(left)
    return SweepOutcome(directory, rows, table, signals.numbers[-1] if signals else None)


def make_start(config: SweepConfig, signals: Signals, environment: Mapping[str, str]) -> Start:
    """Return what starts the commands of a sweep.

    Args:
        config: Says where.
        signals: That are passed on to them.
        environment: Variables of theirs on this machine, on top of this process's.
    """
    if config.launcher == "local":
        return partial(run_logged, environment=environment, signals=signals)
    from onpolicy_sdft.experiments.cluster import submitit_start

    return submitit_start(config, signals)


def check_startable(config: SweepConfig, plan: Plan) -> None:
    """Find whatever would keep the sweep from starting; nothing is written.

    Raises:
        ConfigError: A command, a job's parameter, a cluster or a file cannot be used.
        MissingDependencyError: submitit is needed and not installed.
        RunDirectoryError: The directory holds a sweep whose runs are others, or whose files have changed since.
    """
    if config.launch:
        require_command(config.launch)
    if config.launcher == "submitit":
        from onpolicy_sdft.experiments.cluster import check_jobs

        check_jobs(config)
    directory = Path(config.output_dir)
    refuse_other_sweep(plan, directory)
    for run in plan.runs:
        find_inputs(run.name, run.config, is_distilled_there=run.distilled is None)
        if is_done(run.path, run.config):
            refuse_changed(run.path, run.config, f"take another output_dir, or delete {run.path}")
    for each in plan.distilled:
        if (directory / each.name / "summary.json").is_file():
            fix = f"take another output_dir, or delete {directory / each.name}"
            refuse_changed(directory / each.name, each.config, fix, is_scored=False)


def look_up(config: SweepConfig, plan: Plan, directory: Path) -> list[Row]:
    """Return the rows of a sweep as its directory has them."""
    rows = start_rows(plan, directory)
    for row, run in zip(rows, plan.runs, strict=True):
        if is_done(run.path, run.config):
            row.state, row.reason, row.scores = "done", "", read_scores(run.path, config.metrics)
    return rows


def refuse_other_sweep(plan: Plan, directory: Path) -> None:
    """Refuse to go on with a sweep whose runs are others now; runs may only be added.

    Raises:
        RunDirectoryError: Naming the runs, and what changed in them.
    """
    known = {path.stem: path for path in (directory / "options").glob("*.yaml")}
    now = {run.name: run for run in plan.runs}
    gone = [name for name in known if name not in now]
    if gone:
        raise RunDirectoryError(
            f"{directory} has runs that this sweep has not: {_listed(sorted(gone))}. Fix: put their points and "
            "seeds back, or another output_dir."
        )
    for name, path in known.items():
        changed = _changed(path, now[name].config)
        if changed:
            listed = "; ".join(f"{option} was {old!r}, now {new!r}" for option, (old, new) in changed.items())
            raise RunDirectoryError(
                f"{directory}: the options of {name} are others now: {listed}. Fix: the options it was begun with "
                "(points and seeds may be added), or another output_dir."
            )
    added = [name for name in now if name not in known]
    if known and added:
        logger.info(f"{len(added)} runs are new in {directory}: {_listed(added)}")


def _changed(path: Path, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the options that a file has otherwise than a config, with both values."""
    if path.read_text(encoding="utf-8") == dump_config(config):
        return {}
    try:
        saved = load_config(path)
    except ConfigError as error:
        raise RunDirectoryError(f"{path} cannot be read any more: {error} Fix: another output_dir.") from error
    saved = replace(saved, train=replace(saved.train, output_dir=config.train.output_dir))  # moved as a whole
    before, after = (by_dotted_name(each) for each in (saved, config))
    return {name: (before[name], after[name]) for name in after if before[name] != after[name]}


class _Work:
    """The runs of a sweep while they are run; everything but commands happens in the calling thread."""

    def __init__(self, config: SweepConfig, plan: Plan, rows: list[Row], directory: Path, start: Start) -> None:
        self.config = config
        self.plan = plan
        self.rows = rows
        self.directory = directory
        self.start = start

    def write(self) -> list[dict[str, Any]]:
        """Write sweep.json and the tables."""
        return write_results(self.config, self.plan, self.rows, self.directory)

    def run(self, left: Sequence[Row]) -> list[dict[str, Any]]:
        """Run what is left; return the table."""
        runs = {run.name: run for run in self.plan.runs}
        num_done = len(self.rows) - len(left)
        with (
            Progress("sweep", len(self.rows), "runs", start=num_done) as progress,
            ThreadPoolExecutor(self.config.max_parallel) as pool,
        ):
            unwritten = self._distil(pool, [runs[row.name] for row in left])
            futures: dict[Future[Finish], Row] = {}
            for row in left:
                run = runs[row.name]
                if run.distilled is not None and run.distilled.name in unwritten:
                    self._settle(row, run, replace(unwritten[run.distilled.name], seconds=0.0), progress)
                else:
                    futures[pool.submit(self._train, run)] = row
            try:
                for future in as_completed(futures):
                    self._settle(futures[future], runs[futures[future].name], future.result(), progress)
                    self.write()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # those at work are waited for, the others never begin
                raise
        return self.write()

    def _distil(self, pool: ThreadPoolExecutor, runs: Sequence[PlannedRun]) -> Mapping[str, Finish]:
        """Write the distilled sets that runs need and that are not there; return how those ended that failed."""
        needed = {run.distilled.name: run.distilled for run in runs if run.distilled is not None}
        missing = [each for each in needed.values() if not (self.directory / each.name / "summary.json").is_file()]
        if missing:
            logger.info(f"the base model writes {len(missing)} distilled sets first")
        ended = pool.map(self._write_distilled, missing)
        return {each.name: finish for each, finish in zip(missing, ended, strict=True) if finish.returncode}

    def _write_distilled(self, distilled: Distilled) -> Finish:
        options = self.directory / f"{distilled.name}.yaml"
        write_text_atomic(options, dump_config(distilled.config))
        return self.start(sdft_command("distill", "--config", options), self._log(distilled.name))

    def _train(self, run: PlannedRun) -> Finish:
        arguments: list[object] = ["--config", _options_file(self.directory, run.name)]
        donor = scored_alike(run.config, ((other.path, other.config) for other in self.plan.runs))
        forget_result(run.path)
        if donor is not None:
            arguments += ["--eval.base_scores", donor]
        return self.start(sdft_command("train", *arguments, launch=self.config.launch), self._log(run.name))

    def _log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def _settle(self, row: Row, run: PlannedRun, finish: Finish, progress: Progress) -> None:
        """Write down how a run ended."""
        row.seconds += finish.seconds
        if is_done(run.path, run.config):
            row.state, row.reason = "done", ""
            row.scores = read_scores(run.path, self.config.metrics)
        elif finish.returncode not in STOPPED_CODES:
            row.state, row.reason = "failed", reason_of(run.path, finish) or f"it left no model: {self._log(row.name)}"
        elif finish.seconds and run.path.exists():  # one that was not begun is as it was
            row.state, row.reason = "stopped", finish.reason
        else:
            return
        why = f" ({row.reason})" if row.reason else ""
        logger.info(f"{row.name}: {row.state}{why}, {format_seconds(row.seconds)}")
        num_failed = sum(each.state == "failed" for each in self.rows)
        progress.update(int(row.state in ("done", "failed")), failed=num_failed or None)


def _options_file(directory: Path, name: str) -> Path:
    return directory / "options" / f"{name}.yaml"


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
