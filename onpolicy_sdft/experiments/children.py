"""Runs of an experiment: how they ended, by what they left in their directories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onpolicy_sdft.config.check import evaluation_sets
from onpolicy_sdft.config.schema import RunConfig
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
