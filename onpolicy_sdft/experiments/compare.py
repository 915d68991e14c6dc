"""Methods side by side on one sequence: the same budget, the same tuning, the same questions."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onpolicy_sdft.config.bounds import check_bounds
from onpolicy_sdft.config.load import dump_config
from onpolicy_sdft.config.schema import RunConfig
from onpolicy_sdft.config.sequence import CompareConfig, SequenceConfig, StageConfig
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.experiments.children import refuse_changed, scored_alike
from onpolicy_sdft.experiments.comparison import summarise
from onpolicy_sdft.experiments.sequence import SEQUENCE_FILE, Stopped, run_sequence
from onpolicy_sdft.experiments.sequence_plan import Stage, find_stage_files, plan_sequence
from onpolicy_sdft.runs.claim import claimed
from onpolicy_sdft.runs.files import read_json, write_json_atomic, write_text_atomic

logger = logging.getLogger(__name__)

COMPARISON_FILE = "comparison.json"
_OPTIONS_FILE = "compare.yaml"
_STOPPED = "stopped.json"
_OWN = ("train.max_steps", "train.max_loss_tokens", "eval.stop_score")


@dataclass(frozen=True, slots=True)
class Trial:
    """One learning rate of one method, tried on the first stage."""

    method: str
    lr: float
    sequence: SequenceConfig


def trials(config: CompareConfig, sequence: SequenceConfig) -> list[Trial]:
    """Return the runs that choose learning rates: the first stage alone, scored on its validation set."""
    found = []
    for method in config.methods:
        for lr in config.methods[method].lrs or config.lrs:
            name = f"{method}-lr{lr:g}"
            own = method_sequence(config, sequence, method, config.seeds[0], lr, Path("tune") / name)
            first = own.stages[0]
            assert first.validation is not None  # checked by check_comparison
            alone = dataclasses.replace(first, test=first.validation)
            shared = {**own.run, "eval": {**own.run.get("eval", {}), "sets": [], "kl_prompts": 0}}
            found.append(Trial(method, lr, dataclasses.replace(own, stages=[alone], run=shared)))
    return found


def method_sequence(
    config: CompareConfig,
    sequence: SequenceConfig,
    method: str,
    seed: int,
    lr: float | None,
    place: Path,
    *,
    joint: bool = False,
) -> SequenceConfig:
    """Return the sequence of one method with one seed and learning rate."""
    layer = config.methods[method]
    rate = {} if lr is None else {"optim.lr": lr}
    return dataclasses.replace(
        sequence,
        method=[*sequence.method, *layer.files],
        options={**sequence.options, **layer.options, **rate},
        stages=[_with_budget(config, stage) for stage in sequence.stages],
        seed=seed,
        joint=joint,
        output_dir=str(Path(config.output_dir) / place),
        distilled_dir=str(Path(config.output_dir) / "distilled"),
    )


def _with_budget(config: CompareConfig, stage: StageConfig) -> StageConfig:
    options = dict(stage.options)
    if config.max_steps is not None:
        options["train.max_steps"] = config.max_steps
    if config.match == "tokens":
        options["train.max_loss_tokens"] = config.max_loss_tokens
    if config.match == "acquisition":
        assert stage.validation is not None  # checked by check_comparison
        questions = {
            "label": "validation",
            "data": dataclasses.asdict(stage.validation),
            "task": dataclasses.asdict(stage.task),
            "max_new_tokens": stage.max_new_tokens,
        }
        options |= {
            "eval.validation": [questions],
            "eval.every_steps": config.every_steps,
            "eval.best_metric": "eval/validation/score",
            "eval.stop_score": stage.target_score,
        }
    return dataclasses.replace(stage, options=options)


def check_comparison(config: CompareConfig, sequence: SequenceConfig) -> None:
    """Refuse a comparison that would not be fair or could not be made; every stage of every method is planned.

    Raises:
        ConfigError: Naming the option and the way out.
    """
    check_bounds(config)
    if not config.methods or not config.seeds:
        raise ConfigError("methods and seeds must name at least one each.")
    if len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"seeds={config.seeds} names one twice.")
    numbers = {name: len(layer.lrs or config.lrs) for name, layer in config.methods.items()}
    if len(set(numbers.values())) > 1:
        raise ConfigError(f"methods try different numbers of learning rates ({numbers}): tuning would not be equal.")
    if config.match == "tokens" and (config.max_loss_tokens is None or config.max_steps is None):
        raise ConfigError("match=tokens needs max_loss_tokens, and max_steps as the most there may be.")
    if config.match != "tokens" and config.max_loss_tokens is not None:
        raise ConfigError("max_loss_tokens is read with match=tokens only. Fix: --match tokens, or leave it out.")
    for where, options in (
        ("sequence", sequence.options),
        *((f"methods.{m}", o.options) for m, o in config.methods.items()),
    ):
        if budgets := [name for name in _OWN if name in options]:
            raise ConfigError(f"{where}.options: {budgets[0]} is a budget, the same for all: set it on the comparison.")
    if config.match == "acquisition" and config.joint:
        raise ConfigError("joint training learns all tasks at once: it has no stage that ends at a score (match).")
    is_tuned = any(_rates(config, method) != [None] for method in config.methods)
    for stage in sequence.stages:
        if stage.validation is None and (config.match == "acquisition" or (stage is sequence.stages[0] and is_tuned)):
            raise ConfigError(f"stage {stage.label!r} needs validation questions. Fix: stages[].validation.")
        if config.match == "acquisition" and stage.target_score is None:
            raise ConfigError(f"match=acquisition needs stages[].target_score; stage {stage.label!r} has none.")
    if unknown := [name for name in config.joint if name not in config.methods]:
        raise ConfigError(f"joint names {unknown[0]!r}, which is none of the methods: {', '.join(config.methods)}.")
    for trial in trials(config, sequence):
        find_stage_files(plan_sequence(trial.sequence))
    for method in config.methods:
        lr = _rates(config, method)[0]
        for joint in (False, True)[: 1 + (method in config.joint)]:
            own = method_sequence(config, sequence, method, config.seeds[0], lr, Path(method), joint=joint)
            find_stage_files(plan_sequence(own))


def _rates(config: CompareConfig, method: str) -> list[float | None]:
    return list(config.methods[method].lrs or config.lrs) or [None]


def run_comparison(config: CompareConfig, sequence: SequenceConfig, command: list[str]) -> Path:
    """Run what is left of a comparison and return its summary, ``comparison.json``, written anew after every sequence.

    Raises:
        ConfigError: As :func:`check_comparison`.
        RunDirectoryError: If another process is at work in the directory.
        Interrupted: If a signal ended a run, which resumes next time.
    """
    check_comparison(config, sequence)
    with claimed(Path(config.output_dir), "output_dir", "comparison", (_OPTIONS_FILE, COMPARISON_FILE)):
        return _run(config, sequence, command)


def _run(config: CompareConfig, sequence: SequenceConfig, command: list[str]) -> Path:
    output = Path(config.output_dir)
    write_text_atomic(output / _OPTIONS_FILE, dump_config(config))
    tuning: list[dict[str, Any]] = []
    scored: list[tuple[Path, RunConfig]] = []
    for trial in trials(config, sequence):
        logger.info(f"tuning: {trial.method} at lr {trial.lr:g}")
        own, stages = _with_base_scores(trial.sequence, scored)
        stopped = _run_unless_stopped(own, stages, command)
        score = None if stopped else read_json(Path(own.output_dir) / SEQUENCE_FILE)["matrix"]["value"][1][0]
        run = str(stages[0].path.relative_to(output))
        tuning.append({"method": trial.method, "lr": trial.lr, "score": score, "stopped": stopped, "run": run})
        scored.append((stages[0].path, stages[0].config))
    chosen = {method: choose(method, tuning) for method in config.methods}
    for entry in tuning:
        entry["chosen"] = entry["lr"] == chosen[entry["method"]] and not entry["stopped"]
    rows: list[dict[str, Any]] = []
    for seed, method, joint in _order(config):
        lr = chosen[method]
        name = f"{method}-joint" if joint else f"{method}-seed{seed}"
        if lr is None and _rates(config, method) != [None]:
            logger.info(f"{name}: left out, training stopped at every learning rate")
            continue
        own = method_sequence(config, sequence, method, seed, lr, Path(name), joint=joint)
        own, stages = _with_base_scores(own, scored)
        logger.info(f"{name}: " + ("all tasks at once" if joint else f"{len(own.stages)} stages"))
        stopped = _run_unless_stopped(own, stages, command)
        scored.append((stages[0].path, stages[0].config))
        rows.append({"method": method, "seed": seed, "joint": joint, "sequence": name, "lr": lr, "stopped": stopped})
        found = summarise(output, config.match, config.seeds, list(config.methods), rows, tuning)
        write_json_atomic(output / COMPARISON_FILE, {**found, "command": command, "config": dataclasses.asdict(config)})
    return output / COMPARISON_FILE


def _order(config: CompareConfig) -> list[tuple[int, str, bool]]:
    """Return (seed, method, joint) in the order they are run: every method once before any is repeated."""
    each = [(seed, method, False) for seed in config.seeds for method in config.methods]
    return [*each, *((config.seeds[0], method, True) for method in config.joint)]


def _run_unless_stopped(own: SequenceConfig, stages: list[Stage], command: list[str]) -> str:
    """Run a sequence; return why training stopped in it, or nothing. That is kept: it would stop there again."""
    mark = Path(own.output_dir) / _STOPPED
    options = dump_config(dataclasses.replace(own, base_scores=None))
    if mark.is_file() and (found := read_json(mark))["options"] == options:
        for stage in stages:
            refuse_changed(stage.path, stage.config, f"take another output_dir, or delete {own.output_dir}")
        logger.info(f"stopped before ({mark}): {found['why']}")
        return str(found["why"])
    try:
        run_sequence(own, command, stages)
    except Stopped as error:
        write_json_atomic(mark, {"why": str(error), "options": options})
        logger.info(f"stopped: {error}")
        return str(error)
    return ""


def _with_base_scores(
    own: SequenceConfig, others: Sequence[tuple[Path, RunConfig]]
) -> tuple[SequenceConfig, list[Stage]]:
    """Plan a sequence that takes over the base model's scores of an earlier run, where one was asked the same."""
    stages = plan_sequence(own)
    donor = scored_alike(stages[0].config, others)
    if donor is None:
        return own, stages
    first = stages[0].config
    first = dataclasses.replace(first, eval=dataclasses.replace(first.eval, base_scores=str(donor)))
    stages[0] = dataclasses.replace(stages[0], config=first)
    return dataclasses.replace(own, base_scores=str(donor)), stages


def choose(method: str, tuning: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the learning rate with the best validation score; of equals the smaller, which moves the model less."""
    mine = [entry for entry in tuning if entry["method"] == method and not entry["stopped"]]
    if not mine:
        return None
    return float(max(mine, key=lambda entry: (entry["score"], -entry["lr"]))["lr"])
