"""A sequence's runs: the config of every stage, checked before the first is started."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from onpolicy_sdft.config.bounds import check_bounds
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.config.schema import UNCHECKED, EvalSetConfig, RunConfig
from onpolicy_sdft.config.sequence import SequenceConfig, StageConfig
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.experiments.children import find_inputs, is_done

_DECIDE_NOTHING = (
    "train.resume", "train.checkpoint_steps", "train.keep_checkpoints", "train.trackers", "eval.base_scores",
    "model.cache_dir",
)  # fmt: skip


Options = dict[str, Any]


JOINT = "joint"


#: What the runs of a sequence do unless its files say otherwise: all of them train to their end, so that what is
#: compared is the methods and not where a gate stopped them.
_DEFAULTS = {"gate": {"action": "continue"}}


_BUDGETS = ("train.max_steps", "train.max_loss_tokens")


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

    @property
    def is_done(self) -> bool:
        """Whether it has been run to its end."""
        return is_done(self.path, self.config)


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
        common = load_config(*config.base, str(shared), *config.method)
        named = [(each.label, each.task.name) for each in config.stages]
        named += [(each.label, each.task.name) for each in common.eval.sets]
        for label, task in named:
            if task == UNCHECKED:
                raise ConfigError(
                    f"{label!r} has task.name={UNCHECKED}, which accepts any text: its column of the accuracy matrix "
                    "would say nothing. Fix: a task.name that tells right from wrong answers, or leave it out."
                )
        stages: list[Stage] = []
        groups = [config.stages] if config.joint else [[stage] for stage in config.stages]
        for number, group in enumerate(groups, start=1):
            label = JOINT if config.joint else group[0].label
            try:
                stages.append(_plan_stage(config, shared, common, number, group, stages))
            except ConfigError as error:
                raise ConfigError(f"stage {number} ({label}): {error}") from error
    return stages


def find_stage_files(stages: Sequence[Stage]) -> None:
    """Look for the files of all stages before the first is trained.

    Raises:
        ConfigError: Naming the stage, the option and the file.
    """
    for number, stage in enumerate(stages, start=1):
        find_inputs(f"stage {number} ({stage.label})", stage.config, is_distilled_there=stage.distill is None)


def _check(config: SequenceConfig) -> None:
    if not config.stages:
        raise ConfigError("stages is empty: a sequence has at least one task. Fix: --config configs/continual/...")
    labels = [stage.label for stage in config.stages]
    for label in labels:
        if not label.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"stages: the label {label!r} names files: give it letters, digits, _ and - only.")
        if labels.count(label) > 1 or label == JOINT:
            raise ConfigError(f"stages: the label {label!r} is taken. Fix: give each stage its own.")
    check_bounds(config)
    if config.joint and config.replay_rate:
        raise ConfigError("joint=true trains on all tasks at once: nothing is rehearsed. Fix: --replay_rate 0.")
    own = (
        "train.output_dir",
        "train.init_from",
        "train.resume",
        "train.seed",
        "train.adapter_handoff",
        "train.keep_optimizer",
    )
    for where, options in (("options", config.options), *((f"{s.label}.options", s.options) for s in config.stages)):
        for name in options:
            if name in own or name.partition(".")[0] in ("replay", "data", "task"):
                raise ConfigError(f"{where}: {name} is set by the sequence itself. Fix: leave it out.")
    for name in own:
        section, _, option = name.partition(".")
        given = config.run.get(section)
        if isinstance(given, Mapping) and option in given:
            raise ConfigError(f"run: {name} is set by the sequence itself. Fix: leave it out.")


def _plan_stage(
    config: SequenceConfig,
    shared: Path,
    common: RunConfig,
    number: int,
    group: list[StageConfig],
    done: list[Stage],
) -> Stage:
    first, label = group[0], JOINT if config.joint else group[0].label
    output = Path(config.output_dir)
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
    start: Options = {"eval.base_scores": config.base_scores} if config.base_scores else {}
    if done:
        start = {
            "train.init_from": str(done[-1].path),
            "train.adapter_handoff": config.adapter_handoff,
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
