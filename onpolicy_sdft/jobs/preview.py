"""The small probe that a run makes of its own settings before step 1, and what it sets by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from onpolicy_sdft.data.order import permutation
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.probe import bare_answers, find_limits, summarise, teaches_shortcuts
from onpolicy_sdft.screening.bare import BareAnswers
from onpolicy_sdft.screening.review import Limits
from onpolicy_sdft.train.preview import Preview

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.train.step import Trainer
    from onpolicy_sdft.types import Views

_FIX = (
    "Fix: --context.template work (which asks for the work), another rollout.temperature (`sdft probe` compares them), "
    "or, to train nevertheless, --probe.action warn."
)


def make_preview(config: RunConfig, trainer: Trainer, views: Sequence[Views]) -> Preview | None:
    """Return what looks at rows chosen by ``train.seed``; None where nothing is written, or it is turned off."""
    wanted = config.probe.num_examples
    if config.train.targets != "policy" or not wanted or config.rollout.weights == "sharded":
        return None
    chosen = sorted(permutation(len(views), config.train.seed, 0)[:wanted])
    return Preview(trainer, [views[index] for index in chosen])


def look(config: RunConfig, preview: Preview, say: Callable[[str], None]) -> None:
    """Sample bare answers and a few of the teacher's rollouts; set by them what later steps are compared with.

    Every rank must call it. A resumed run takes up what the first start set instead, see :func:`restore_look`.

    Raises:
        ConfigError: If the settings would teach shortcuts and ``probe.action`` is ``refuse``.
    """
    trainer = preview.trainer
    bare = refresh(preview)
    right = "right" if bare.of_right else "too few right: of all"
    say(
        f"probe: {bare.num} bare answers, {bare.num_right} right; median {bare.length:.0f} tokens and "
        f"{bare.num_steps:.0f} steps ({right}); surprise {bare.surprise:.2f} nats a token"
    )
    if config.rollout.view == "student":
        return
    taught = preview.taught()
    reviewer = trainer.reviewer
    assert reviewer is not None
    reviewer.limits = find_limits(bare, taught, reviewer.given)
    trainer.state.limits = asdict(reviewer.limits)
    row = summarise(
        reviewer.rule(taught), bare, trainer.screen, config.context.template, config.rollout.temperature, 0.0
    )
    leak = "" if row.leak is None else f", leak {row.leak:.2f}"
    say(
        f"probe: {row.n} rollouts of the teacher, {row.score:.0%} right, {row.keep_rate:.0%} kept, "
        f"{row.answer_only_rate:.0%} only the answer, {row.verbatim_rate:.0%} verbatim; {row.mean_length:.0f} tokens; "
        f"surprise {row.surprise:.2f}{leak} nats a token"
    )
    problem = teaches_shortcuts(row, bare, config.probe)
    if problem and config.probe.action == "refuse":
        raise ConfigError(f"Training would teach shortcuts: {problem}. {_FIX}")
    if problem:
        say(f"warning: training may teach shortcuts: {problem}")


def refresh(preview: Preview) -> BareAnswers:
    """Sample bare answers of the weights of now, and compare rollouts with them from here on."""
    trainer = preview.trainer
    bare = bare_answers(preview.bare(), trainer.screen.task, trainer.screen.decode)
    trainer.screen.bare, trainer.state.bare = bare, asdict(bare)
    return bare


def restore_look(trainer: Trainer) -> None:
    """Put what a checkpoint holds of an earlier look in place."""
    state = trainer.state
    trainer.screen.bare = BareAnswers(**state.bare) if state.bare else None
    if state.limits and trainer.reviewer is not None:
        trainer.reviewer.limits = Limits(**state.limits)
