"""Refuse option values and combinations that cannot be meant, with the way out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from onpolicy_sdft.config.check_guards import check_guards
from onpolicy_sdft.config.check_method import check_method
from onpolicy_sdft.config.schema import EvalSetConfig, RunConfig, SourceConfig
from onpolicy_sdft.errors import ConfigError

#: Label of the set that ``eval.path`` makes.
TEST_LABEL = "test"


def check(config: RunConfig) -> None:
    """Check a config as a whole.

    Raises:
        ConfigError: On the first value or combination that is refused.
    """
    _check_ranges(config)
    _check_model(config)
    _check_rollout(config)
    _check_eval(config)
    _check_replay(config)
    _check_start(config)
    check_method(config)
    check_guards(config)
    if config.optim.schedule == "cosine" and config.train.max_loss_tokens is not None:
        raise ConfigError(
            "optim.schedule=cosine needs to know the number of steps, but train.max_loss_tokens ends the run at an "
            "unknown one. Fix: --optim.schedule constant, or drop train.max_loss_tokens."
        )


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={value!r} is not usable: it must be {wanted}.")


def _check_ranges(config: RunConfig) -> None:
    at_least_one = {
        "lora.r": config.lora.r,
        "lora.alpha": config.lora.alpha,
        "context.num_demonstrations": config.context.num_demonstrations,
        "context.max_teacher_tokens": config.context.max_teacher_tokens,
        "feedback.num_attempts": config.feedback.num_attempts,
        "context.max_student_tokens": config.context.max_student_tokens,
        "rollout.max_new_tokens": config.rollout.max_new_tokens,
        "rollout.batch_size": config.rollout.batch_size,
        "rollout.sync_steps": config.rollout.sync_steps,
        "rollout.num_samples": config.rollout.num_samples,
        "screening.max_attempts": config.screening.max_attempts,
        "screening.loop_ngram": config.screening.loop_ngram,
        "screening.loop_repeats": config.screening.loop_repeats,
        "objective.num_kept": config.objective.num_kept,
        "distill.batch_size": config.distill.batch_size,
        "train.batch_size": config.train.batch_size,
        "train.num_epochs": config.train.num_epochs,
        "train.micro_batch_tokens": config.train.micro_batch_tokens,
        "train.max_bad_steps": config.train.max_bad_steps,
        "train.keep_checkpoints": config.train.keep_checkpoints,
        "eval.num_samples": config.eval.num_samples,
        "eval.batch_size": config.eval.batch_size,
        "eval.kl_max_new_tokens": config.eval.kl_max_new_tokens,
    }
    optional = {
        "data.limit": config.data.limit,
        "objective.chunk_tokens": config.objective.chunk_tokens,
        "rollout.num_slots": config.rollout.num_slots,
        "train.max_steps": config.train.max_steps,
        "train.max_loss_tokens": config.train.max_loss_tokens,
        "train.checkpoint_steps": config.train.checkpoint_steps,
        "eval.limit": config.eval.limit,
        "eval.every_steps": config.eval.every_steps,
        "eval.early_stop": config.eval.early_stop,
        "rollout.prefill_tokens": config.rollout.prefill_tokens,
        "screening.step_samples": config.screening.step_samples,
        "teacher.refresh_steps": config.teacher.refresh_steps,
    }
    for label, item in (("eval.sets", config.eval.sets), ("eval.validation", config.eval.validation)):
        for index, questions in enumerate(item):
            at_least_one[f"{label}[{index}].max_new_tokens"] = questions.max_new_tokens
            optional[f"{label}[{index}].data.limit"] = questions.data.limit
    for name, value in at_least_one.items():
        _require(value >= 1, name, value, "at least 1")
    for name, bound in optional.items():
        _require(bound is None or bound >= 1, name, bound, "at least 1, or null")
    _require(0 <= config.lora.dropout < 1, "lora.dropout", config.lora.dropout, "in [0, 1)")
    _require(config.optim.lr > 0, "optim.lr", config.optim.lr, "above 0")
    timeout = config.train.rank_timeout_seconds
    _require(timeout > 0, "train.rank_timeout_seconds", timeout, "above 0")
    _require(config.optim.eps > 0, "optim.eps", config.optim.eps, "above 0")
    for beta in config.optim.betas:
        _require(0 <= beta < 1, "optim.betas", config.optim.betas, "in [0, 1)")
    for name, number in {
        "optim.weight_decay": config.optim.weight_decay,
        "optim.warmup_steps": config.optim.warmup_steps,
        "optim.max_grad_norm": config.optim.max_grad_norm,
        "train.rollout_samples": config.train.rollout_samples,
        "eval.kl_prompts": config.eval.kl_prompts,
        "rollout.max_draft_tokens": config.rollout.max_draft_tokens,
        "rollout.draft_store_tokens": config.rollout.draft_store_tokens,
        "screening.min_length_ratio": config.screening.min_length_ratio,
        "screening.answer_only_ratio": config.screening.answer_only_ratio,
        "screening.bare_samples": config.screening.bare_samples,
        "probe.num_examples": config.probe.num_examples,
        "objective.skip_tokens": config.objective.skip_tokens,
        "objective.demonstration_weight": config.objective.demonstration_weight,
        "objective.anchor_kl": config.objective.anchor_kl,
        "teacher.half_life": config.teacher.half_life,
    }.items():
        _require(number >= 0, name, number, "0 or more")
    share, clip = config.rollout.demonstration_dropout, config.objective.clip
    _require(0 <= share <= 1, "rollout.demonstration_dropout", share, "in [0, 1]")
    _require(clip is None or clip > 0, "objective.clip", clip, "above 0, or null")
    for name in ("max_surprise", "max_leak", "fallback_clip"):
        bound = getattr(config.screening, name)
        _require(bound is None or bound > 0, f"screening.{name}", bound, "above 0, or null")
    for name in ("min_step_rate", "max_solved_rate", "min_agreement", "max_check_errors"):
        rate = getattr(config.screening, name)
        _require(0 <= rate <= 1, f"screening.{name}", rate, "in [0, 1]")
    _require(0 <= config.probe.max_answer_only <= 1, "probe.max_answer_only", config.probe.max_answer_only, "in [0, 1]")
    ratio = config.probe.max_surprise_ratio
    _require(ratio > 1, "probe.max_surprise_ratio", ratio, "above 1")
    _require(
        config.objective.importance_cap > 0, "objective.importance_cap", config.objective.importance_cap, "above 0"
    )
    blend, disagreement = config.objective.blend, config.objective.disagreement
    _require(0 <= blend < 1, "objective.blend", blend, "at least 0 and below 1, where nothing would be left to learn")
    _require(
        disagreement is None or disagreement > 0, "objective.disagreement", disagreement, "above 0, or null for none"
    )
    _require(0 < config.objective.beta < 1, "objective.beta", config.objective.beta, "above 0 and below 1")
    weights = config.objective.position_weights
    usable = all(weight >= 0 for weight in weights) and (not weights or any(weight > 0 for weight in weights))
    _require(usable, "objective.position_weights", weights, "0 or more each, one of them above 0")
    longest, shortest = config.screening.max_length_ratio, config.screening.min_length_ratio
    _require(longest > shortest, "screening.max_length_ratio", longest, f"above min_length_ratio={shortest}")


def _check_model(config: RunConfig) -> None:
    if config.data.path is not None and (config.data.options or config.data.split != "train"):
        raise ConfigError(
            f"data.split and data.options belong to a hub or embedded set, but data.path={config.data.path!r} is a "
            "file. Fix: --data.split train --data.options '{}'."
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
    if config.model.load_in_4bit and not config.lora.enabled:
        raise ConfigError(
            "model.load_in_4bit=true freezes the base, so there is nothing to train without adapters. "
            "Fix: --lora.enabled true, or --model.load_in_4bit false."
        )


def _check_rollout(config: RunConfig) -> None:
    rollout = config.rollout
    _require(rollout.temperature >= 0, "rollout.temperature", rollout.temperature, "0 (greedy) or more")
    _require(rollout.top_k >= 0, "rollout.top_k", rollout.top_k, "0 (keep all) or more")
    _require(0 < rollout.top_p <= 1, "rollout.top_p", rollout.top_p, "in (0, 1]")
    _require(0 <= rollout.min_p < 1, "rollout.min_p", rollout.min_p, "in [0, 1)")
    end, budget = rollout.min_p_end, rollout.blend_budget
    _require(end is None or 0 <= end < 1, "rollout.min_p_end", end, "in [0, 1), or null")
    _require(0 <= rollout.blend <= 1, "rollout.blend", rollout.blend, "in [0, 1]")
    _require(budget is None or budget >= 0, "rollout.blend_budget", budget, "0 or more, or null")
    _require(rollout.repetition_penalty > 0, "rollout.repetition_penalty", rollout.repetition_penalty, "above 0")
    _require(0 < rollout.kv_fraction < 1, "rollout.kv_fraction", rollout.kv_fraction, "in (0, 1)")
    _require(rollout.kv_gib is None or rollout.kv_gib > 0, "rollout.kv_gib", rollout.kv_gib, "above 0, or null")
    if rollout.deterministic and rollout.num_slots is None:
        raise ConfigError(
            "rollout.deterministic=true takes the engine's shapes from the options alone, but rollout.num_slots is "
            "unset. Fix: set it (128 is what a CPU gets by itself)."
        )
    narrowed = rollout.top_k > 0 or rollout.top_p < 1 or rollout.min_p > 0 or bool(rollout.min_p_end)
    if rollout.temperature == 0 and narrowed:
        raise ConfigError(
            "rollout.temperature=0 is greedy, so top_k, top_p and min_p would do nothing. "
            "Fix: a temperature above 0, or leave them at 0, 1 and 0."
        )
    if rollout.temperature == 0 and "resample" in {
        config.screening.banned,
        config.screening.empty,
        config.screening.truncated,
        config.screening.looping,
        config.screening.length,
        config.screening.check,
    }:
        raise ConfigError(
            "A greedy rollout (rollout.temperature=0) drawn again is the same rollout, so a screening verdict "
            "'resample' cannot help. Fix: a temperature above 0, or the verdict fallback."
        )


def _check_eval(config: RunConfig) -> None:
    evaluation = config.eval
    _require(evaluation.temperature >= 0, "eval.temperature", evaluation.temperature, "0 (greedy) or more")
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
    known = [f"eval/{item.label}/score" for item in evaluation.validation]
    if evaluation.best_metric is not None and evaluation.best_metric not in known:
        raise ConfigError(f"eval.best_metric={evaluation.best_metric!r} is none of: {', '.join(known)}.")
    if evaluation.limit is not None and evaluation.path is None:
        raise ConfigError(f"eval.limit={evaluation.limit} limits eval.path, which is unset. Fix: set eval.path.")
    for sets in (evaluation_sets(config), evaluation.validation):
        _check_labels(sets)


def evaluation_sets(config: RunConfig) -> list[EvalSetConfig]:
    """Return the sets scored before and after training: ``eval.sets``, and ``eval.path`` as one more."""
    if config.eval.path is None:
        return config.eval.sets
    rows = replace(config.data, name=None, path=config.eval.path, limit=config.eval.limit, split="train", options={})
    own = EvalSetConfig(TEST_LABEL, rows, config.task, config.rollout.max_new_tokens)
    return [own, *config.eval.sets]


def _check_replay(config: RunConfig) -> None:
    replay = config.replay
    if replay.rate is not None:
        _require(0 < replay.rate < 1, "replay.rate", replay.rate, "above 0 and below 1, or null")
        if not replay.sources:
            raise ConfigError(f"replay.rate={replay.rate} is a share of replay.sources, which names none.")
    _check_labels(replay.sources, "replay source")


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


def _check_labels(sets: Sequence[EvalSetConfig | SourceConfig], what: str = "evaluation set") -> None:
    labels = [item.label for item in sets]
    for label in labels:
        if not re.fullmatch(r"[\w.+-]+", label):
            raise ConfigError(
                f"The {what} label {label!r} names files, metrics or ids. Fix: letters, digits, '_', '-' and '.' only."
            )
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ConfigError(f"Two {what}s are called {twice.pop()!r}. Give each its own label.")
