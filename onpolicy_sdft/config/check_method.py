"""Refuse methods that cannot be meant: options of targets, objective and teacher that contradict one another."""

from __future__ import annotations

from typing import get_args

from onpolicy_sdft.config.check_feedback import check_feedback
from onpolicy_sdft.config.check_review import check_review
from onpolicy_sdft.config.schema import REVIEW_RULES, TEXT_RULES, DivergenceName, RolloutConfig, RunConfig
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.types import SamplingParams


def check_method(config: RunConfig) -> None:
    """Check what makes a method: where targets come from, what is minimised, whose weights teach.

    Raises:
        ConfigError: On the first combination that is refused.
    """
    if config.train.targets == "policy":
        _check_sampled(config)
    else:
        _check_unsampled(config)
    if config.train.targets == "distilled" and config.train.distilled is None:
        raise ConfigError(
            "train.targets=distilled learns a file that `sdft distill` wrote, but train.distilled is unset. "
            "Fix: --train.distilled DIRECTORY."
        )
    if config.train.targets != "distilled" and config.train.distilled is not None:
        raise ConfigError(
            f"train.distilled={config.train.distilled!r} would not be read by train.targets={config.train.targets}. "
            "Fix: --train.targets distilled, or leave it unset."
        )
    _check_shown(config)
    check_feedback(config)
    _check_effect(config)
    check_review(config)
    _check_sharded(config)


def _check_shown(config: RunConfig) -> None:
    """What the teacher is shown is said once: ``show`` says of which rows, ``num_demonstrations`` how many in all."""
    show, number = config.context.show, config.context.num_demonstrations
    if show in ("own", "none") and number > 1:
        raise ConfigError(
            f"context.num_demonstrations={number}, but context.show={show} shows no other question's demonstration. "
            "Fix: --context.show both (its own and others) or others, or --context.num_demonstrations 1."
        )
    if show == "both" and number == 1:
        raise ConfigError(
            "context.show=both shows others beside the question's own demonstration, but context.num_demonstrations=1 "
            "is one in all. Fix: --context.num_demonstrations 2 or more, or --context.show own."
        )
    if show != "own" and config.train.targets == "demonstrations":
        raise ConfigError(
            f"context.show={show} shows examples to the teacher, but train.targets=demonstrations asks none. "
            "Fix: --context.show own --context.num_demonstrations 1, or --train.targets policy."
        )


def _check_sharded(config: RunConfig) -> None:
    """Without a whole copy there is only what all ranks do together: writing and learning, in equal numbers."""
    if config.rollout.weights != "sharded":
        return
    resampling = [name for name in TEXT_RULES if getattr(config.screening, name) == "resample"]
    ways_out = {
        "--rollout.backend hf": config.rollout.backend != "hf",
        "--objective.name nll": config.objective.name != "nll" or config.objective.anchor_kl > 0,
        "--teacher.weights live": config.teacher.weights != "live",
        "--eval.kl_prompts 0": config.eval.kl_prompts > 0,
        "another verdict than resample": bool(resampling),
        "--screening.steps keep": config.screening.steps != "keep",
        "--screening.surprise keep": config.screening.surprise != "keep",
        "--screening.leak keep": config.screening.leak != "keep",
        "--screening.bare_samples 0": config.screening.bare_samples > 0,
        "--screening.pick all": config.screening.pick != "all",
    }
    for way_out, is_wrong in ways_out.items():
        if is_wrong:
            raise ConfigError(
                "rollout.weights=sharded has no whole copy of the weights to score with, to measure with, or to write "
                f"with on one rank alone. Fix: {way_out}, or --rollout.weights gather."
            )


def _check_effect(config: RunConfig) -> None:
    """Refuse options that are set although nothing reads them."""
    objective, teacher = config.objective, config.teacher
    compares = objective.name in get_args(DivergenceName)
    readers = {
        "context.neighbours": (config.context.show in ("others", "both"), "--context.show others or both"),
        "objective.beta": (objective.name == "jsd", "--objective.name jsd"),
        "objective.support": (compares, "an objective that compares distributions"),
        "objective.blend": (compares, "an objective that compares distributions"),
        "objective.disagreement": (compares, "an objective that compares distributions"),
        "objective.num_kept": (objective.support != "full", "--objective.support teacher or student"),
        "objective.anchor": (objective.anchor_kl > 0, "--objective.anchor_kl above 0"),
        "objective.importance_cap": (objective.importance == "token", "--objective.importance token"),
        "teacher.half_life": (teacher.weights == "ema", "--teacher.weights ema"),
        "teacher.refresh_steps": (teacher.weights == "stage", "--teacher.weights stage"),
        "teacher.device": (
            teacher.weights != "live" or objective.anchor_kl > 0,
            "a teacher or an anchor that is copied (--teacher.weights ema)",
        ),
    }
    for name, (is_read, way_out) in readers.items():
        section, _, option = name.partition(".")
        value = getattr(getattr(config, section), option)
        default = getattr(getattr(RunConfig(), section), option)
        if value != default and not is_read:
            raise ConfigError(
                f"{name}={value!r} is set, but nothing reads it here. Fix: {way_out}, or leave it at {default!r}."
            )


def live_options_set(rollout: RolloutConfig) -> list[str]:
    """Return the options of rollouts that a step learns from which are not at their defaults."""
    default = RolloutConfig()
    live = (
        "prompt", "num_samples", "demonstration_dropout", "temperature_end", "min_p_end", "blend", "blend_budget"
    )  # fmt: skip
    return [name for name in live if getattr(rollout, name) != getattr(default, name)]


def is_blended(rollout: RolloutConfig) -> bool:
    """Whether rollouts are written under two prompts, each of which takes a slot."""
    return rollout.blend > 0 or rollout.blend_budget is not None


def _check_unsampled(config: RunConfig) -> None:
    """Nothing is written here, so options of rollouts and distributions would do nothing."""
    targets, rollout = config.train.targets, config.rollout
    if config.objective.name != "nll":
        raise ConfigError(
            f"objective.name={config.objective.name} compares student and teacher at the policy's samples, "
            f"but train.targets={targets} samples none. Fix: --train.targets policy, or --objective.name nll."
        )
    if config.objective.importance != "none":
        raise ConfigError(
            f"objective.importance corrects for how rollouts were sampled, but train.targets={targets} samples none. "
            "Fix: --objective.importance none."
        )
    if config.objective.demonstration_weight:
        raise ConfigError(
            f"objective.demonstration_weight adds the demonstration to a rollout, but train.targets={targets} learns "
            "none. Fix: --objective.demonstration_weight 0."
        )
    if config.teacher.weights != "live":
        raise ConfigError(
            f"teacher.weights={config.teacher.weights} asks for a teacher, but train.targets={targets} needs none. "
            "Fix: leave teacher.weights at live."
        )
    for name in live_options_set(rollout):
        raise ConfigError(
            f"rollout.{name}={getattr(rollout, name)!r} is an option of rollouts that are learned, but "
            f"train.targets={targets} learns none. Fix: leave it at {getattr(RolloutConfig(), name)!r}."
        )


def _check_sampled(config: RunConfig) -> None:
    rollout, objective = config.rollout, config.objective
    student_view = rollout.prompt == "student"
    if student_view and objective.name == "nll":
        raise ConfigError(
            "rollout.prompt=student with objective.name=nll trains the policy on its own samples from the bare prompt: "
            "nothing in it knows the demonstration. Fix: --rollout.prompt teacher, or an objective that compares "
            "with the teacher (--objective.name reverse_kl)."
        )
    if student_view and rollout.demonstration_dropout:
        raise ConfigError(
            f"rollout.demonstration_dropout={rollout.demonstration_dropout} leaves demonstrations out of the teacher's "
            "prompt, but rollout.prompt=student shows none. Fix: set it to 0."
        )
    if rollout.demonstration_dropout and config.teacher.weights != "live":
        raise ConfigError(
            f"rollout.demonstration_dropout={rollout.demonstration_dropout} has the policy write under its bare "
            f"prompt, but with teacher.weights={config.teacher.weights} it is the teacher that writes. "
            "Fix: --teacher.weights live, or --rollout.demonstration_dropout 0."
        )
    if objective.name == "sampled_reverse_kl":
        _check_score_function(config)
    _check_blend(config)
    _check_schedules(config)
    if rollout.num_samples > 1 and rollout.temperature == 0:
        raise ConfigError(
            f"rollout.num_samples={rollout.num_samples} greedy rollouts would all be the same. "
            "Fix: a temperature above 0, or one sample."
        )


def _check_blend(config: RunConfig) -> None:
    """The blend of rollouts is one of two prompts, and something of the first must be left."""
    rollout = config.rollout
    if is_blended(rollout) and rollout.prompt == "student":
        option = "blend" if rollout.blend > 0 else "blend_budget"
        raise ConfigError(
            f"rollout.{option}={getattr(rollout, option):g} mixes the teacher's prompt with the bare one, but "
            "rollout.prompt=student writes under the bare prompt alone. Fix: --rollout.prompt teacher, or leave it at "
            f"{getattr(RolloutConfig(), option)!r}."
        )
    if is_blended(rollout) and rollout.num_slots == 1:
        raise ConfigError(
            "rollout.num_slots=1, but a blended rollout takes two: one for the teacher's prompt, one for the bare "
            "prompt. Fix: --rollout.num_slots 2 or more, or leave it unset."
        )
    if (rollout.blend == 1 or rollout.blend_budget == 0) and config.objective.name == "nll":
        option = "blend=1" if rollout.blend == 1 else "blend_budget=0"
        raise ConfigError(
            f"rollout.{option} with objective.name=nll trains the policy on its own samples from the bare prompt: "
            "nothing in it knows the demonstration. Fix: a blend below 1, a budget above 0, or an objective that "
            "compares with the teacher (--objective.name forward_kl)."
        )


def _check_schedules(config: RunConfig) -> None:
    """What moves over the run needs to know how long that is."""
    rollout = config.rollout
    if rollout.temperature_end is not None and (rollout.temperature <= 0 or rollout.temperature_end <= 0):
        raise ConfigError(
            "A temperature schedule needs temperatures above 0: rollout.temperature="
            f"{rollout.temperature:g}, rollout.temperature_end={rollout.temperature_end:g}."
        )
    moving = [name for name in ("temperature_end", "min_p_end") if getattr(rollout, name) is not None]
    if moving and config.train.max_loss_tokens is not None:
        raise ConfigError(
            f"rollout.{moving[0]} needs to know the number of steps, but train.max_loss_tokens ends the run at "
            "an unknown one. Fix: drop one of them."
        )


def _check_score_function(config: RunConfig) -> None:
    """Its gradient is that of a divergence only at samples of the student's own distribution, all of them."""
    if config.rollout.prompt != "student":
        raise ConfigError(
            "objective.name=sampled_reverse_kl is an expectation over the student's own samples, but rollout.prompt="
            f"{config.rollout.prompt}. Fix: --rollout.prompt student, or --objective.name reverse_kl."
        )
    choosing = [
        name
        for name in (*TEXT_RULES, *(name for name in REVIEW_RULES if name != "support"))
        if getattr(config.screening, name) != "keep"
    ]
    if choosing:
        raise ConfigError(
            f"objective.name=sampled_reverse_kl is an expectation over all samples, but screening.{choosing[0]}="
            f"{getattr(config.screening, choosing[0])} takes some out. Fix: the verdict keep for every reason "
            f"({', '.join(f'screening.{name}' for name in choosing)})."
        )
    rollout = config.rollout
    is_moved = rollout.temperature_end not in (None, 1.0) or bool(rollout.min_p_end)
    is_another = is_moved or SamplingParams.of(rollout) != SamplingParams()
    if rollout.temperature == 0 or (is_another and config.objective.importance == "none"):
        raise ConfigError(
            "objective.name=sampled_reverse_kl is an expectation over the student's own samples, but rollout.* "
            f"samples another (temperature={rollout.temperature:g}, top_k={rollout.top_k}, ...). "
            "Fix: --rollout.temperature 1 without top_k, top_p, min_p and penalty, or, for a temperature above 0, "
            "--objective.importance token."
        )
