"""Refuse option values and combinations that cannot be meant, with the way out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onpolicy_sdft.config.bounds import check_bounds
from onpolicy_sdft.config.check_backend import READS_WHOLE
from onpolicy_sdft.config.check_method import check_method
from onpolicy_sdft.config.check_vllm import check_vllm
from onpolicy_sdft.config.schema import IN_MEMORY, TEXT_RULES, EvalSetConfig, OptimConfig, RunConfig, SourceConfig
from onpolicy_sdft.config.scores import score_metric
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.types import SamplingParams

#: Label of the set that ``eval.path`` makes.
TEST_LABEL = "test"


def check(config: RunConfig) -> None:
    """Check a config as a whole.

    Raises:
        ConfigError: On the first value or combination that is refused.
    """
    check_bounds(config)
    _check_several(config)
    _check_places(config)
    _check_columns(config)
    _check_model(config)
    _check_rollout(config)
    _check_eval(config)
    _check_replay(config)
    _check_start(config)
    check_vllm(config)
    check_method(config)
    _check_optim(config)


def _check_optim(config: RunConfig) -> None:
    optim, vetted = config.optim, OptimConfig()
    for name in ("betas", "eps"):
        if optim.name == "adafactor" and getattr(optim, name) != getattr(vetted, name):
            raise ConfigError(
                f"optim.{name}={getattr(optim, name)!r} belongs to AdamW, and optim.name=adafactor does not read it. "
                "Fix: leave it out, or --optim.name adamw."
            )
    if optim.decay_steps is not None and optim.schedule != "warmup_stable_decay":
        raise ConfigError(
            f"optim.decay_steps={optim.decay_steps} belongs to optim.schedule=warmup_stable_decay, and the schedule is "
            f"{optim.schedule}. Fix: --optim.schedule warmup_stable_decay, or leave it out."
        )
    if optim.schedule != "constant" and config.train.max_loss_tokens is not None:
        raise ConfigError(
            f"optim.schedule={optim.schedule} has to know the number of steps, but train.max_loss_tokens ends the run "
            "at an unknown one. Fix: --optim.schedule constant, or drop train.max_loss_tokens."
        )


def _check_several(config: RunConfig) -> None:
    weights = config.objective.position_weights
    if not all(weight >= 0 for weight in weights) or (weights and not any(weights)):
        raise ConfigError(
            f"objective.position_weights={weights!r} is not usable: it must be 0 or more each, one of them above 0."
        )
    longest, shortest = config.screening.max_length_ratio, config.screening.min_length_ratio
    if not longest > shortest:
        raise ConfigError(
            f"screening.max_length_ratio={longest!r} is not usable: it must be above min_length_ratio={shortest}."
        )


def _check_places(config: RunConfig) -> None:
    """The run directory is a place of its own: a folder that is read is not written into."""
    for option, name in (
        ("train.output_dir", config.train.output_dir),
        ("distill.output_dir", config.distill.output_dir),
    ):
        if not name.strip():
            raise ConfigError(
                f"{option}={name!r} names no directory, so files would be written into the working directory (is a "
                f"variable of the shell unset?). Fix: --{option} runs/NAME."
            )
    output = Path(config.train.output_dir).expanduser().resolve()
    read = {"model.name": config.model.name, "data.path": config.data.path, "data.name": config.data.name}
    for option, value in read.items():
        folder = Path(value).expanduser() if value else None
        if folder is not None and folder.is_dir() and output.is_relative_to(folder.resolve()):
            raise ConfigError(
                f"train.output_dir={config.train.output_dir!r} stands in {option}={value!r}, which is read: the run "
                "would be written among its files. Fix: a directory beside it, such as --train.output_dir runs/NAME."
            )


def _check_columns(config: RunConfig) -> None:
    sources = [("data", config.data)]
    sources += [(f"eval.sets {item.label}: data", item.data) for item in config.eval.sets]
    sources += [(f"eval.validation {item.label}: data", item.data) for item in config.eval.validation]
    sources += [(f"replay.sources {item.label}: data", item.data) for item in config.replay.sources]
    for where, data in sources:
        if data.prompt_column is not None and data.prompt_column == data.response_column:
            raise ConfigError(
                f"{where}.prompt_column and {where}.response_column are both {data.prompt_column!r}: each answer would "
                "be its question. Fix: name the column of the answers."
            )


def _check_model(config: RunConfig) -> None:
    if config.data.path is not None and (config.data.options or config.data.split != "train"):
        raise ConfigError(
            f"data.split and data.options belong to a hub or embedded set, but data.path={config.data.path!r} is a "
            "file. Fix: --data.split train --data.options '{}'."
        )
    if config.data.path is not None and config.data.seed != RunConfig().data.seed:
        raise ConfigError(
            f"data.seed={config.data.seed} is read by embedded sets alone, but data.path={config.data.path!r} is a "
            "file. Fix: leave it out (train.seed orders the rows)."
        )
    if config.model.revision is not None and Path(config.model.name).expanduser().is_dir():
        raise ConfigError(
            f"model.revision={config.model.revision!r} names a hub revision, but model.name={config.model.name!r} is a "
            "folder of this machine. Fix: --model.revision null."
        )
    if config.model.revision is not None and config.model.name.startswith("embedded:"):
        raise ConfigError(
            f"model.revision={config.model.revision!r} names a hub revision, but {config.model.name} is embedded. "
            "Fix: --model.revision null."
        )
    if not config.lora.enabled and config.model.dtype != "float32":
        raise ConfigError(
            f"Full fine-tuning (lora.enabled=false) with model.dtype={config.model.dtype}: most updates would be "
            "lost to rounding. Fix: --model.dtype float32 --train.precision bf16 (bf16 compute, float32 weights)."
        )
    for name in READS_WHOLE:
        value = getattr(config.lora, name)
        if value and not config.lora.enabled:
            raise ConfigError(
                f"lora.{name}={value!r} goes with adapters, but lora.enabled=false trains every weight. "
                "Fix: --lora.enabled true, or leave it out."
            )
        if value and config.model.load_in_4bit:
            raise ConfigError(
                f"lora.{name}={value!r} with model.load_in_4bit=true: only plain adapters are known to merge, resume "
                "and export exactly on a 4-bit base. Fix: --model.load_in_4bit false, or leave it out."
            )
    if config.model.load_in_4bit and not config.lora.enabled:
        raise ConfigError(
            "model.load_in_4bit=true freezes the base, so there is nothing to train without adapters. "
            "Fix: --lora.enabled true, or --model.load_in_4bit false."
        )


def _check_rollout(config: RunConfig) -> None:
    rollout = config.rollout
    if rollout.deterministic and rollout.num_slots is None:
        raise ConfigError(
            "rollout.deterministic=true takes the engine's shapes from the options alone, but rollout.num_slots is "
            "unset. Fix: set it (128 is what a CPU gets by itself)."
        )
    if rollout.temperature == 0 and (SamplingParams.of(rollout).leaves_out or rollout.min_p_end):
        raise ConfigError(
            "rollout.temperature=0 is greedy, so top_k, top_p and min_p would do nothing. "
            "Fix: a temperature above 0, or leave them at 0, 1 and 0."
        )
    if rollout.temperature == 0 and any(getattr(config.screening, rule) == "resample" for rule in TEXT_RULES):
        raise ConfigError(
            "A greedy rollout (rollout.temperature=0) drawn again is the same rollout, so a screening verdict "
            "'resample' cannot help. Fix: a temperature above 0, or the verdict fallback."
        )


def _check_eval(config: RunConfig) -> None:
    evaluation = config.eval
    if evaluation.num_samples > 1 and evaluation.temperature == 0:
        raise ConfigError(
            f"eval.num_samples={evaluation.num_samples} greedy answers would all be the same. "
            "Fix: --eval.temperature 1, or --eval.num_samples 1."
        )
    for name in ("every_steps", "best_metric", "early_stop", "stop_score"):
        if getattr(evaluation, name) is not None and not evaluation.validation:
            raise ConfigError(f"eval.{name} is set but eval.validation names no set. Fix: add one.")
    if evaluation.validation and evaluation.every_steps is None:
        raise ConfigError("eval.validation names sets but eval.every_steps is unset. Fix: set it.")
    if evaluation.early_stop is not None and evaluation.best_metric is None:
        raise ConfigError("eval.early_stop needs to know what better means. Fix: set eval.best_metric.")
    if evaluation.stop_score is not None and evaluation.best_metric is None:
        raise ConfigError("eval.stop_score needs to know which score. Fix: set eval.best_metric.")
    known = [score_metric(item.label) for item in evaluation.validation]
    if evaluation.best_metric is not None and evaluation.best_metric not in known:
        raise ConfigError(f"eval.best_metric={evaluation.best_metric!r} is none of: {', '.join(known)}.")
    if evaluation.limit is not None and evaluation.path is None:
        raise ConfigError(f"eval.limit={evaluation.limit} limits eval.path, which is unset. Fix: set eval.path.")
    for sets in (evaluation_sets(config), evaluation.validation):
        _check_sets(sets)


def evaluation_sets(config: RunConfig) -> list[EvalSetConfig]:
    """Return the sets scored before and after training: ``eval.sets``, and ``eval.path`` as one more."""
    # A task of a program that has ended is replaced for all sets by the one that --task.name names.
    sets = [
        replace(item, task=config.task) if item.task.name.startswith(IN_MEMORY) else item for item in config.eval.sets
    ]
    if config.eval.path is None:
        return sets
    rows = replace(
        config.data, name=None, path=config.eval.path, limit=config.eval.limit, split="train", options={},
        num_workers=None, cache=True,
    )  # fmt: skip
    own = EvalSetConfig(TEST_LABEL, rows, config.task, config.rollout.max_new_tokens)
    return [own, *sets]


def _check_replay(config: RunConfig) -> None:
    replay = config.replay
    if replay.rate is not None and not replay.sources:
        raise ConfigError(f"replay.rate={replay.rate} is a share of replay.sources, which names none.")
    _check_sets(replay.sources, "replay source")


def _check_start(config: RunConfig) -> None:
    train, teacher = config.train, config.teacher
    if train.init_from is None:
        for name in ("adapter_handoff", "keep_optimizer"):
            if getattr(train, name) != getattr(RunConfig().train, name):
                raise ConfigError(
                    f"train.{name}={getattr(train, name)!r} says how to go on from another run, but train.init_from "
                    "is unset. Fix: set it, or leave this option out."
                )
        return
    if train.adapter_handoff == "continue":
        return
    if not config.lora.enabled:
        raise ConfigError(
            "train.adapter_handoff=merge folds an adapter into the base, but lora.enabled=false trains the base "
            "itself. Fix: --train.adapter_handoff continue."
        )
    if train.keep_optimizer:
        raise ConfigError(
            "train.keep_optimizer=true goes on with the moments of an adapter that train.adapter_handoff=merge "
            "replaces by a new one. Fix: --train.adapter_handoff continue, or --train.keep_optimizer false."
        )
    if config.model.load_in_4bit:
        raise ConfigError(
            "train.adapter_handoff=merge cannot fold into a 4-bit base. Fix: --train.adapter_handoff continue."
        )
    anchored = config.objective.anchor_kl > 0 and config.objective.anchor == "base"
    if teacher.weights == "base" or anchored:
        raise ConfigError(
            "With train.adapter_handoff=merge the base of this run is what the run before left, not the base model "
            "that teacher.weights=base or objective.anchor=base asks for. Fix: --train.adapter_handoff "
            "continue, or stage."
        )


def _check_sets(sets: Sequence[EvalSetConfig | SourceConfig], what: str = "evaluation set") -> None:
    labels = [item.label for item in sets]
    for label in labels:
        if not re.fullmatch(r"[\w.+-]+", label):
            raise ConfigError(
                f"The {what} label {label!r} names files, metrics or ids. Fix: letters, digits, '_', '-' and '.' only."
            )
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ConfigError(f"Two {what}s are called {twice.pop()!r}. Give each its own label.")
    for item in sets:  # rows of all sources are prepared together, and questions are few
        if item.data.num_workers is not None or not item.data.cache:
            raise ConfigError(
                f"num_workers and cache of the {what} {item.label!r} would have no effect. Fix: data.num_workers and "
                "data.cache, which hold for the whole run."
            )
