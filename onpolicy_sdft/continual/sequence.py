"""Run a sequence of tasks: each stage is an ordinary run that starts from the weights of the one before.

Stages are commands of their own, so whatever starts a run (``accelerate launch``) starts them too, and what was done
when the sequence was killed is never done again: a finished stage is kept, an interrupted one resumes.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from onpolicy_sdft.config.load import by_dotted_name, dump_config, load_config
from onpolicy_sdft.config.schema import EvalSetConfig, RunConfig
from onpolicy_sdft.config.sequence import SequenceConfig, StageConfig
from onpolicy_sdft.continual.results import collect
from onpolicy_sdft.errors import NO_UPDATE, ConfigError, RunDirectoryError, TrainingError
from onpolicy_sdft.runs.claim import claimed
from onpolicy_sdft.runs.commands import STOPPED_CODES, run_logged, sdft_command
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import differences, read_json, write_json_atomic, write_text_atomic

Say = Callable[[str], None]
_DECIDE_NOTHING = (
    "train.resume", "train.checkpoint_steps", "train.keep_checkpoints", "train.trackers", "eval.seed_scores",
    "model.cache_dir",
)  # fmt: skip
Options = dict[str, Any]

SEQUENCE_FILE = "sequence.json"
JOINT = "joint"
#: What the runs of a sequence do unless its files say otherwise: all of them train to their end, so that what is
#: compared is the methods and not where a gate stopped them.
_DEFAULTS = {"gate": {"action": "continue"}}
_BUDGETS = ("train.max_steps", "train.max_loss_tokens")


class Stopped(TrainingError):
    """A run trained and then refused to go on: no step of its last ones made an update. That is a result of it."""


class Interrupted(Exception):
    """A signal ended a run after its state was saved; the exit code is to be passed on."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"stopped by a signal (exit code {exit_code})")
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of a sequence."""

    label: str  # of the task; "joint" where all are trained at once
    config: RunConfig
    distill: RunConfig | None  # what writes the distilled set it learns, if it learns one

    @property
    def path(self) -> Path:
        """The run directory."""
        return Path(self.config.train.output_dir)


def plan_sequence(config: SequenceConfig) -> list[Stage]:
    """Make the config of every stage, checked; nothing is written.

    Raises:
        ConfigError: On the first stage whose options are refused, with its label.
    """
    _check(config)
    with tempfile.TemporaryDirectory() as scratch:
        defaults, shared = Path(scratch) / "defaults.yaml", Path(scratch) / "run.yaml"
        defaults.write_text(yaml.safe_dump(_DEFAULTS), encoding="utf-8")
        shared.write_text(yaml.safe_dump(config.run), encoding="utf-8")
        config = dataclasses.replace(config, base=[str(defaults), *config.base])
        stages: list[Stage] = []
        groups = [config.stages] if config.joint else [[stage] for stage in config.stages]
        for number, group in enumerate(groups, start=1):
            label = JOINT if config.joint else group[0].label
            try:
                stages.append(_plan_stage(config, shared, number, group, stages))
            except ConfigError as error:
                raise ConfigError(f"stage {number} ({label}): {error}") from error
    return stages


def _check(config: SequenceConfig) -> None:
    if not config.stages:
        raise ConfigError("stages is empty: a sequence has at least one task. Fix: --config configs/continual/...")
    labels = [stage.label for stage in config.stages]
    for label in labels:
        if not label.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"stages: the label {label!r} names files: give it letters, digits, _ and - only.")
        if labels.count(label) > 1 or label == JOINT:
            raise ConfigError(f"stages: the label {label!r} is taken. Fix: give each stage its own.")
    if not 0 <= config.replay_rate < 1:
        raise ConfigError(f"replay_rate={config.replay_rate} is not usable: it must be in [0, 1).")
    if config.joint and config.replay_rate:
        raise ConfigError("joint=true trains on all tasks at once: nothing is rehearsed. Fix: --replay_rate 0.")
    own = ("train.output_dir", "train.start_from", "train.resume", "train.seed", "train.carry", "train.keep_optimizer")
    for where, options in (("options", config.options), *((f"{s.label}.options", s.options) for s in config.stages)):
        for name in options:
            if name in own or name.partition(".")[0] in ("replay", "data", "task"):
                raise ConfigError(f"{where}: {name} is set by the sequence itself. Fix: leave it out.")


def _plan_stage(
    config: SequenceConfig, shared: Path, number: int, group: list[StageConfig], done: list[Stage]
) -> Stage:
    first, label = group[0], JOINT if config.joint else group[0].label
    output = Path(config.output_dir)
    common = load_config(*config.base, shared, *config.method)
    sets = _eval_sets(config, common)
    options: Options = {
        **(_joint_options(group, config.options, common) if config.joint else {**first.options, **config.options}),
        **{f"data.{name}": value for name, value in dataclasses.asdict(first.data).items()},
        **{f"task.{name}": value for name, value in dataclasses.asdict(first.task).items()},
        "eval.sets": [dataclasses.asdict(item) for item in sets],
        "train.output_dir": str(output / f"stage-{number}-{label}"),
        "train.resume": "auto",
        "train.seed": config.seed,
    }
    earlier = group[1:] if config.joint else config.stages[: number - 1] if config.replay_rate else []
    if earlier:
        options["replay.sources"] = [_source(stage) for stage in earlier]
        options["replay.rate"] = None if config.joint else config.replay_rate
    files: list[str | Path] = [*config.base, shared]
    start: Options = {"eval.seed_scores": config.seed_scores} if config.seed_scores else {}
    if done:
        start = {
            "train.start_from": str(done[-1].path),
            "train.carry": config.carry,
            "train.keep_optimizer": config.keep_optimizer,
        }
    run = load_config(*files, *config.method, **options, **start)
    if not run.eval.before_and_after:
        raise ConfigError("eval.before_and_after=false leaves nothing to compare. Fix: leave it at true.")
    if run.train.targets != "distilled":
        return Stage(label, run, None)
    name = label + (f"-seed{config.seed}" if earlier else "")  # which rows are rehearsed depends on the seed
    place = Path(config.distilled_dir or output / "distilled") / name
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, distilled=str(place)))
    return Stage(label, run, _distill_config(files, options, place))


def _distill_config(files: list[str | Path], options: Options, place: Path) -> RunConfig:
    """What writes a stage's distilled set: the base model, under the shared options, without the method's files."""
    sections = ("data", "task", "replay", "train", "model", "context", "rollout", "screening", "distill")
    own = {name: value for name, value in options.items() if name.partition(".")[0] in sections}
    if "replay.sources" not in own:
        own["train.seed"] = 0  # one set for all seeds
    return load_config(*files, **own, **{"distill.output_dir": str(place), "distill.resume": "auto"})


def _joint_options(group: list[StageConfig], shared: Mapping[str, Any], common: RunConfig) -> Options:
    """Return the further options of all stages at once: the same for each, but for budgets, which add up."""
    options = [dict(stage.options) for stage in group]
    found: Options = {}
    for name in _BUDGETS:
        default = shared.get(name, getattr(common.train, name.partition(".")[2]))
        each = [own.pop(name, default) for own in options]
        if None not in each:
            found[name] = sum(each)
        elif any(one is not None for one in each):
            raise ConfigError(f"joint=true needs {name} for every stage, or for none.")
    if any(own != options[0] for own in options):
        raise ConfigError(f"joint=true needs the same stage options for every stage (but for {', '.join(_BUDGETS)}).")
    return {**options[0], **shared, **found}


def _eval_sets(config: SequenceConfig, common: RunConfig) -> list[EvalSetConfig]:
    """Return the test sets of all tasks, then what is never trained."""
    tests = [EvalSetConfig(stage.label, stage.test, stage.task, stage.max_new_tokens) for stage in config.stages]
    return [*tests, *(dataclasses.replace(item, retention=True) for item in common.eval.sets)]


def _source(stage: StageConfig) -> dict[str, Any]:
    return {"label": stage.label, "data": dataclasses.asdict(stage.data), "task": dataclasses.asdict(stage.task)}


def run_sequence(config: SequenceConfig, command: list[str], say: Say, stages: list[Stage] | None = None) -> Path:
    """Run what is left of a sequence and return its summary, ``sequence.json``.

    Args:
        config: The sequence.
        command: The command line, for the record.
        say: Told what is going on.
        stages: Its plan, if it was made already.

    Raises:
        ConfigError: If a stage's options are refused.
        RunDirectoryError: If the directory holds a sequence of other options, or another process is at work in it.
        TrainingError: If a stage failed, naming its log.
        Interrupted: If a signal ended a stage, which resumes next time.
    """
    stages = plan_sequence(config) if stages is None else stages
    with claimed(Path(config.output_dir), "output_dir", "sequence"):
        return _run_stages(config, command, say, stages)


def _run_stages(config: SequenceConfig, command: list[str], say: Say, stages: list[Stage]) -> Path:
    output = Path(config.output_dir)
    for stage in stages:
        _refuse_other(stage)
    _refuse_gap(stages)
    write_text_atomic(output / "sequence.yaml", dump_config(config))
    for number, stage in enumerate(stages, start=1):
        say(f"stage {number} of {len(stages)}: {stage.label}" + (" (done)" if is_done(stage.path) else ""))
        if not is_done(stage.path):
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


def is_done(run: Path) -> bool:
    """Whether a run has trained, was scored and has left its model."""
    summary = RunDirectory(run).eval_summary_path
    return (run / "model").is_dir() and summary.is_file() and "after" in read_json(summary)


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
    write_text_atomic(options, dump_config(config))
    finish = run_logged(sdft_command(verb, "--config", str(options), launch=launch), log, echo=True)
    if finish.returncode in STOPPED_CODES:
        raise Interrupted(finish.returncode)
    if verb == "train" and _kept_its_start(Path(config.train.output_dir)):
        return  # its model is what it started from, scored as any other; the code is for people's scripts
    if finish.returncode and NO_UPDATE in finish.reason:
        raise Stopped(f"{finish.reason} (log: {log})")
    if finish.returncode:
        raise TrainingError(
            f"sdft {verb} --config {options} ended with code {finish.returncode}: {finish.reason} (log: {log}). "
            "Fix: mend it and start the same command again; what is done is kept."
        )


def _kept_its_start(run: Path) -> bool:
    """Whether the gate stopped a run and found nothing better than its start."""
    result = RunDirectory(run).result_path
    return is_done(run) and result.is_file() and bool((read_json(result).get("verdict") or {}).get("is_start"))


def _refuse_other(stage: Stage) -> None:
    """Refuse to take a finished run for this stage if its options are others.

    Raises:
        RunDirectoryError: Naming the section that differs.
    """
    if not is_done(stage.path):
        return
    saved, now = (_deciding(config) for config in (load_config(stage.path / "config.yaml"), stage.config))
    if differing := differences(saved, now):
        key = differing[0]
        raise RunDirectoryError(
            f"{stage.path} was run with other options ({', '.join(differing)}): {key} was {saved[key]!r}, now "
            f"{now[key]!r}. Fix: another output_dir, or delete that stage and those after it."
        )


def _refuse_gap(stages: list[Stage]) -> None:
    """Refuse to keep a finished stage that stands on one that is to be run again."""
    left = next((stage for stage in stages if not is_done(stage.path)), None)
    later = [] if left is None else [stage for stage in stages[stages.index(left) :] if is_done(stage.path)]
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
        key = differing[0]
        raise RunDirectoryError(
            f"{place} was distilled with other options ({', '.join(differing)}): {key} was {saved[key]!r}, now "
            f"{now[key]!r}. Fix: another distilled_dir, or delete that set."
        )


def _deciding(config: RunConfig) -> Mapping[str, Any]:
    """Options by dotted name, without those that change no result."""
    kept = {name: value for name, value in by_dotted_name(config).items() if name not in _DECIDE_NOTHING}
    return dict(json.loads(json.dumps(kept)))  # as a file holds it: a tuple comes back as a list
