"""Run a sequence of tasks: each stage is an ordinary run that starts from the weights of the one before.

Stages are commands of their own, so whatever starts a run (``accelerate launch``) starts them too, and what was done
when the sequence was killed is never done again: a finished stage is kept, an interrupted one resumes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onpolicy_sdft.config.load import by_dotted_name, dump_config, load_config
from onpolicy_sdft.config.schema import RunConfig
from onpolicy_sdft.config.sequence import SequenceConfig
from onpolicy_sdft.errors import NoUpdateError, RunDirectoryError, TrainingError
from onpolicy_sdft.experiments.children import error_of, forget_result, is_done, reason_of, refuse_changed
from onpolicy_sdft.experiments.sequence_plan import _DECIDE_NOTHING, Stage, find_stage_files, plan_sequence
from onpolicy_sdft.experiments.sequence_results import collect
from onpolicy_sdft.runs.claim import claimed
from onpolicy_sdft.runs.commands import STOPPED_CODES, run_logged, sdft_command
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import differences, list_differences, read_json, write_json_atomic, write_text_atomic

logger = logging.getLogger(__name__)


SEQUENCE_FILE = "sequence.json"
_OPTIONS_FILE = "sequence.yaml"


class Stopped(TrainingError):
    """A run trained and then refused to go on: no step of its last ones made an update. That is a result of it."""


class Interrupted(Exception):
    """A signal ended a run after its state was saved; the exit code is to be passed on."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"stopped by a signal (exit code {exit_code})")
        self.exit_code = exit_code


def run_sequence(config: SequenceConfig, command: list[str], stages: list[Stage] | None = None) -> Path:
    """Run what is left of a sequence and return its summary, ``sequence.json``.

    Args:
        config: The sequence.
        command: The command line, for the record.
        stages: Its plan, if it was made already.

    Raises:
        ConfigError: If a stage's options are refused, or one of its files is not there.
        RunDirectoryError: If the directory holds a sequence of other options, or another process is at work in it.
        TrainingError: If a stage failed, naming its log.
        Interrupted: If a signal ended a stage, which resumes next time.
    """
    stages = plan_sequence(config) if stages is None else stages
    find_stage_files(stages)
    with claimed(Path(config.output_dir), "output_dir", "sequence", (_OPTIONS_FILE, SEQUENCE_FILE)):
        return _run_stages(config, command, stages)


def _run_stages(config: SequenceConfig, command: list[str], stages: list[Stage]) -> Path:
    output = Path(config.output_dir)
    for stage in stages:
        _refuse_other(stage)
    _refuse_gap(stages)
    write_text_atomic(output / _OPTIONS_FILE, dump_config(config))
    for number, stage in enumerate(stages, start=1):
        logger.info(f"stage {number} of {len(stages)}: {stage.label}" + (" (done)" if stage.is_done else ""))
        if not stage.is_done:
            run_stage(stage, output, config.launch)
        summary = collect(
            output,
            labels=[each.label for each in config.stages],
            retention_labels=[each.label for each in stages[0].config.eval.sets if each.retention],
            stages=[(each.label, each.path) for each in stages[:number]],
            joint=config.joint,
            is_whole=number == len(stages),
        )
        write_json_atomic(output / SEQUENCE_FILE, {**summary, "command": command, "config": dataclasses.asdict(config)})
    return output / SEQUENCE_FILE


def run_stage(stage: Stage, output: Path, launch: list[str]) -> None:
    """Run one stage, or what is left of it, after the distilled set that it learns."""
    if stage.distill is not None:
        place = Path(stage.distill.distill.output_dir)
        if (place / "summary.json").is_file():
            _refuse_other_set(place, stage.distill)
        else:
            _run("distill", stage.distill, output / f"distill-{place.name}", [])
    _run("train", stage.config, output / stage.path.name, launch)


def _run(verb: str, config: RunConfig, place: Path, launch: list[str]) -> None:
    options, log = place.with_name(f"{place.name}.yaml"), place.with_name(f"{place.name}.log")
    run = Path(config.distill.output_dir if verb == "distill" else config.train.output_dir)
    write_text_atomic(options, dump_config(config))
    forget_result(run)
    finish = run_logged(sdft_command(verb, "--config", str(options), launch=launch), log, echo=True)
    if finish.returncode in STOPPED_CODES:
        raise Interrupted(finish.returncode)
    if verb == "train" and _kept_its_start(run, config):
        return  # its model is what it started from, scored as any other; the code is for people's scripts
    if finish.returncode:
        reason = reason_of(run, finish)
        if error_of(run) == NoUpdateError.__name__:
            raise Stopped(f"{reason} (log: {log})")
        raise TrainingError(
            f"sdft {verb} --config {options} ended with code {finish.returncode}: {reason} (log: {log}). "
            "Fix: mend it and start the same command again; what is done is kept."
        )


def _kept_its_start(run: Path, config: RunConfig) -> bool:
    """Whether the gate stopped a run and found nothing better than its start."""
    result = RunDirectory(run).result_path
    return is_done(run, config) and result.is_file() and bool((read_json(result).get("verdict") or {}).get("is_start"))


def _refuse_other(stage: Stage) -> None:
    """Refuse to take a finished run for this stage if its options are others.

    Raises:
        RunDirectoryError: Naming the section, or the file, that differs.
    """
    if not stage.is_done:
        return
    saved, now = (_deciding(config) for config in (load_config(stage.path / "config.yaml"), stage.config))
    if differing := differences(saved, now):
        raise RunDirectoryError(
            f"{stage.path} was run with other options: {list_differences(differing)}. Fix: another output_dir, or "
            "delete that stage and those after it."
        )
    refuse_changed(stage.path, stage.config, "take another output_dir, or delete that stage and those after it")


def _refuse_gap(stages: list[Stage]) -> None:
    """Refuse to keep a finished stage that stands on one that is to be run again."""
    left = next((stage for stage in stages if not stage.is_done), None)
    later = [] if left is None else [stage for stage in stages[stages.index(left) :] if stage.is_done]
    if left is not None and later:
        raise RunDirectoryError(
            f"{later[0].path} is finished, but {left.path}, which it stands on, is not. Fix: delete the finished "
            "ones after it, or put it back."
        )


def _refuse_other_set(place: Path, asked: RunConfig) -> None:
    """Refuse a distilled set that was written with other options than this stage asks for."""
    sections = ("model.", "data.", "task.", "context.", "rollout.", "screening.", "replay.", "distill.rules")
    saved, now = (
        {name: value for name, value in _deciding(config).items() if name.startswith(sections)}
        for config in (load_config(place / "config.yaml"), asked)
    )
    if differing := differences(saved, now):
        raise RunDirectoryError(
            f"{place} was distilled with other options: {list_differences(differing)}. Fix: another distilled_dir, or "
            "delete that set."
        )
    refuse_changed(place, asked, "take another distilled_dir, or delete that set", is_scored=False)


def _deciding(config: RunConfig) -> Mapping[str, Any]:
    """Options by dotted name, without those that change no result."""
    kept = {name: value for name, value in by_dotted_name(config).items() if name not in _DECIDE_NOTHING}
    return dict(json.loads(json.dumps(kept)))  # as a file holds it: a tuple comes back as a list
