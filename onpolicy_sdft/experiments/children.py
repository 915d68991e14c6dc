"""Runs of an experiment: how they ended, by what they left in their directories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onpolicy_sdft.config.check import evaluation_sets
from onpolicy_sdft.config.schema import RunConfig
from onpolicy_sdft.data.inputs import changed_inputs, input_digests, input_files
from onpolicy_sdft.errors import ConfigError, DataError, RunDirectoryError, TaskError
from onpolicy_sdft.runs.commands import Finish
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json


def is_done(path: Path, config: RunConfig) -> bool:
    """Whether a run has ended well: it has left its model, its report and, where it is scored, its scores."""
    run = RunDirectory(path)
    if not run.model_path.is_dir() or not run.report_path.is_file():
        return False
    if not config.eval.before_and_after or not (evaluation_sets(config) or config.eval.kl_prompts):
        return True
    return run.eval_summary_path.is_file() and "after" in read_json(run.eval_summary_path)


def find_inputs(name: str, config: RunConfig, *, is_distilled_there: bool = True) -> None:
    """Look for the files that a run is going to read, before anything is trained.

    Raises:
        ConfigError: Naming the run, the option and the file that is not there.
    """
    try:
        input_files(config, is_distilled_there=is_distilled_there)
    except (ConfigError, DataError, TaskError) as error:
        raise ConfigError(f"{name}: {error}") from error


def refuse_changed(path: Path, config: RunConfig, fix: str, *, is_scored: bool = True) -> None:
    """Refuse to count a run, or a distilled set, whose files are others than those that it read.

    Args:
        path: Of the run. One that an earlier version made has no record of its files, and is not looked at.
        config: What it would be made of now.
        fix: The way out, but for putting the files back.
        is_scored: False for a distilled set.

    Raises:
        RunDirectoryError: Naming the run, the options and the files.
        DataError: A file is not there any more.
    """
    manifest = RunDirectory(path).manifest_path
    recorded = read_json(manifest).get("files") if manifest.is_file() else None
    if recorded is None:
        return
    changed = changed_inputs(recorded, input_digests(input_files(config, is_scored=is_scored)))
    if changed:
        raise RunDirectoryError(
            f"{path} is there already, but what it read has been changed since: {', '.join(changed)}. Fix: put that "
            f"back, {fix}."
        )


def forget_result(path: Path) -> None:
    """Remove how an earlier attempt ended, so that the next one's end is not taken for it."""
    RunDirectory(path).result_path.unlink(missing_ok=True)


def error_of(path: Path) -> str:
    """Return the name of the error that ended a run's training; empty where none did, or none was written down."""
    return str(_result(path).get("error", ""))


def reason_of(path: Path, finish: Finish) -> str:
    """Return why a run failed: what it wrote down itself, else what its command said."""
    found = _result(path)
    return str(found["reason"]) if found.get("error") else finish.reason


def _result(path: Path) -> Mapping[str, Any]:
    result = RunDirectory(path).result_path
    return read_json(result) if result.is_file() else {}


def scored_alike(config: RunConfig, others: Iterable[tuple[Path, RunConfig]]) -> Path | None:
    """Return a finished run whose scores of the base model hold for another as well; None where there is none.

    Args:
        config: Of the run that is to take them over.
        others: Directories and configs of runs, finished or not.
    """
    if config.eval.base_scores is not None or not config.eval.before_and_after:
        return None
    asked = _asked_of_the_base_model(config)
    alike = ((path, other) for path, other in others if _asked_of_the_base_model(other) == asked)
    return next((path for path, other in alike if is_done(path, other)), None)


def _asked_of_the_base_model(config: RunConfig) -> tuple[object, ...]:
    evaluation = replace(config.eval, base_scores=None)
    rollout = (config.rollout.backend, config.rollout.decode_copy, config.train.precision)
    return config.model, evaluation, evaluation_sets(config), config.context.student_template_kwargs, rollout
