"""Refuse settings of a teacher that sees the student's attempt which cannot be meant."""

from __future__ import annotations

from onpolicy_sdft.config.schema import TEXT_RULES, UNCHECKED, FeedbackConfig, RunConfig
from onpolicy_sdft.errors import ConfigError


def check_feedback(config: RunConfig) -> None:
    """Check ``feedback`` against what samples, what screens and what checks.

    Raises:
        ConfigError: On the first combination that is refused.
    """
    feedback = config.feedback
    if not feedback.enabled:
        _check_unused(config)
        return
    ways_out = {
        "--train.targets policy": config.train.targets != "policy",
        "--rollout.weights gather": config.rollout.weights == "sharded",
        "--rollout.demonstration_dropout 0": config.rollout.demonstration_dropout > 0,
    }
    for way_out, is_wrong in ways_out.items():
        if is_wrong:
            name, _, _ = way_out.removeprefix("--").partition(" ")
            section, _, option = name.partition(".")
            raise ConfigError(
                f"feedback.enabled=true has the student write before the teacher, which {name}="
                f"{getattr(getattr(config, section), option)} does not go with. "
                f"Fix: {way_out}, or --feedback.enabled false."
            )
    has_data = config.data.name is not None or config.data.path is not None  # a file of a method names no task
    if config.task.name == UNCHECKED and has_data:
        raise ConfigError(
            "feedback.enabled=true tells the teacher what the check says, but task.name=free_form accepts every text. "
            "Fix: a task with a check, or --feedback.enabled false."
        )
    if feedback.num_attempts > 1 and config.rollout.temperature == 0:
        raise ConfigError(
            f"feedback.num_attempts={feedback.num_attempts} greedy attempts would all be the same. "
            "Fix: a temperature above 0, or --feedback.num_attempts 1."
        )
    if config.rollout.prompt == "student":
        _check_student_view(config)


def _check_unused(config: RunConfig) -> None:
    for name in ("num_attempts", "solved", "show_attempt", "reveal"):
        value, default = getattr(config.feedback, name), getattr(FeedbackConfig(), name)
        if value != default:
            raise ConfigError(
                f"feedback.{name}={value!r} is set, but nothing reads it here. "
                f"Fix: --feedback.enabled true, or leave it at {default!r}."
            )
    if config.context.show == "none":
        raise ConfigError(
            "context.show=none shows the teacher nothing that the student does not see. "
            "Fix: --feedback.enabled true, or --context.show own."
        )


def _check_student_view(config: RunConfig) -> None:
    """There the attempts are the rollouts: wrong ones are what is learned at, and none is drawn again."""
    feedback, screening = config.feedback, config.screening
    if feedback.num_attempts > 1:
        raise ConfigError(
            f"feedback.num_attempts={feedback.num_attempts}, but with rollout.prompt=student the attempts are the "
            "rollouts. Fix: --rollout.num_samples to have more of them, and --feedback.num_attempts 1."
        )
    if screening.check != "keep":
        raise ConfigError(
            f"feedback.enabled=true with rollout.prompt=student learns at wrong attempts, which screening.check="
            f"{screening.check} takes out. Fix: --screening.check keep, or --rollout.prompt teacher."
        )
    for name in TEXT_RULES:
        if getattr(screening, name) == "resample":
            raise ConfigError(
                f"screening.{name}=resample draws another text, but with feedback.enabled=true and rollout.prompt="
                "student the teacher was told of the first one. Fix: another verdict, or --rollout.prompt teacher."
            )
    if config.objective.name == "sampled_reverse_kl" and feedback.solved == "drop":
        raise ConfigError(
            "objective.name=sampled_reverse_kl is an expectation over all samples, but feedback.solved=drop takes the "
            "right ones out. Fix: --feedback.solved learn, or --objective.name reverse_kl."
        )
