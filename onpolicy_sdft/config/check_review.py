"""Refuse rules of the review that cannot be meant: what they need, and what they cannot do."""

from __future__ import annotations

from onpolicy_sdft.config.schema import REVIEW_RULES, UNCHECKED, RunConfig
from onpolicy_sdft.errors import ConfigError


def check_review(config: RunConfig) -> None:
    """Check ``screening``'s rules against what samples, what is minimised and what checks.

    Raises:
        ConfigError: On the first combination that is refused.
    """
    _check_verdicts(config)
    _check_samples(config)
    _check_bare_samples(config)
    _check_task(config)


def _check_verdicts(config: RunConfig) -> None:
    screening = config.screening
    for name in REVIEW_RULES:
        if getattr(screening, name) == "resample":
            raise ConfigError(
                f"screening.{name}=resample: this rule judges all rollouts of a step at once, after the last was "
                f"written. Fix: --rollout.num_samples 4 --screening.pick best --screening.{name} fallback (or drop)."
            )
    if screening.surprise != "keep" and screening.max_surprise is None and not config.probe.num_examples:
        raise ConfigError(
            f"screening.surprise={screening.surprise} has no bound: screening.max_surprise is unset, and "
            "probe.num_examples=0 finds none. Fix: --screening.max_surprise 0.6, or --probe.num_examples 16."
        )
    if screening.fallback_clip is not None and config.train.targets != "policy":
        raise ConfigError(
            f"screening.fallback_clip={screening.fallback_clip:g} is for demonstrations that stand in for a refused "
            f"rollout, but train.targets={config.train.targets} has none. Fix: --objective.clip, or leave it unset."
        )


def _check_samples(config: RunConfig) -> None:
    """Rules over several rollouts of a demonstration."""
    screening, number = config.screening, config.rollout.num_samples
    if screening.pick == "best" and number == 1:
        raise ConfigError(
            "screening.pick=best picks one of several rollouts of a demonstration, but rollout.num_samples=1. "
            "Fix: --rollout.num_samples 4, or --screening.pick all."
        )
    if screening.agreement != "keep" and number == 1:
        raise ConfigError(
            f"screening.agreement={screening.agreement} compares several rollouts of a demonstration, but "
            "rollout.num_samples=1. Fix: --rollout.num_samples 4, or --screening.agreement keep."
        )
    if screening.agreement != "keep" and screening.check == "keep":
        raise ConfigError(
            f"screening.agreement={screening.agreement} goes by the check's verdicts, but screening.check=keep asks "
            "for none. Fix: --screening.check fallback (or drop), or --screening.agreement keep."
        )
    if config.objective.name == "sampled_reverse_kl" and (screening.pick == "best" or screening.weigh_by_failure):
        option = "pick=best" if screening.pick == "best" else "weigh_by_failure=true"
        raise ConfigError(
            f"screening.{option} chooses among samples, but objective.name=sampled_reverse_kl is an expectation over "
            "all of them. Fix: leave it at its default, or another objective."
        )


def _check_bare_samples(config: RunConfig) -> None:
    screening = config.screening
    asks = screening.solved != "keep" or screening.weigh_by_failure
    if asks and not screening.bare_samples:
        raise ConfigError(
            "screening.solved and screening.weigh_by_failure go by how often the policy solves a row by itself, but "
            "screening.bare_samples=0. Fix: --screening.bare_samples 4."
        )
    if screening.bare_samples and not asks:
        raise ConfigError(
            f"screening.bare_samples={screening.bare_samples} answers are sampled, but no rule reads them. "
            "Fix: --screening.solved drop, --screening.weigh_by_failure true, or --screening.bare_samples 0."
        )
    used = {
        "bare_samples": screening.bare_samples,
        "step_samples": (screening.steps != "keep") * screening.step_samples,
    }
    for name, number in used.items():
        if number > 1 and config.rollout.temperature == 0:
            raise ConfigError(
                f"screening.{name}={number} greedy samples (rollout.temperature=0) would all be the same. "
                f"Fix: --screening.{name} 1, or a temperature above 0."
            )


def _check_task(config: RunConfig) -> None:
    """A task that accepts every text has nothing to say on rules that go by its check."""
    screening = config.screening
    rules = [
        f"{name}={value}" for name in ("steps", "agreement", "solved") if (value := getattr(screening, name)) != "keep"
    ]
    rules += ["weigh_by_failure=true"] if screening.weigh_by_failure else []
    has_data = config.data.name is not None or config.data.path is not None  # a file of a method names no task
    if rules and config.task.name == UNCHECKED and has_data and not config.replay.sources:
        raise ConfigError(
            f"screening.{rules[0]} goes by the task's check, but task.name=free_form accepts every text. "
            "Fix: a task with a check, or leave the option at its default."
        )
