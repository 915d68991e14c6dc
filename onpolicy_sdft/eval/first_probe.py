"""The small probe that a run or a distillation makes of its own settings first, and what it sets by it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from onpolicy_sdft.data.order import permutation
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.probe_rows import bare_answers, find_limits, summarise, teaches_shortcuts
from onpolicy_sdft.screening.bare import BareAnswers
from onpolicy_sdft.screening.review import Limits
from onpolicy_sdft.train.probe import Probe
from onpolicy_sdft.train.source import PolicySource
from onpolicy_sdft.types import T

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.train.step import Trainer
    from onpolicy_sdft.types import PromptPair

logger = logging.getLogger(__name__)

_FIX = (
    "Fix: --context.template work (which asks for the work), another rollout.temperature (`sdft probe` compares them), "
    "or, to train nevertheless, --probe.action warn."
)


def probe_of(config: RunConfig, trainer: Trainer, pairs: Sequence[PromptPair]) -> Probe | None:
    """Return what looks at a run's rows; None where it samples nothing, or the probe is off."""
    source, reviewer = trainer.source, trainer.reviewer
    if not config.probe.num_examples or not isinstance(source, PolicySource) or reviewer is None:
        return None
    policy = partial(trainer.weights.showing, "live")
    rows = choose_rows(pairs, config.probe.num_examples, config.train.seed)
    return Probe(rows, source, trainer.screen, reviewer, policy, trainer.backend)


def choose_rows(rows: Sequence[T], number: int, seed: int) -> list[T]:
    """Return so many rows, in their order, chosen by ``train.seed``."""
    return [rows[index] for index in sorted(permutation(len(rows), seed, 0)[:number])]


def probe_first(config: RunConfig, probe: Probe) -> None:
    """Sample bare answers and a few of the teacher's rollouts; set by them what rollouts are compared with.

    Every rank must call it.

    Raises:
        ConfigError: If the settings would teach shortcuts and ``probe.action`` is ``refuse``.
    """
    bare = refresh(probe, 0)
    right = "right" if bare.of_right else "too few right: of all"
    logger.info(
        f"probe: {bare.num} bare answers, {bare.num_right} right; median {bare.length:.0f} tokens and "
        f"{bare.num_steps:.0f} steps ({right}); surprise {bare.surprise:.2f} nats a token"
    )
    _warn_of_terse_data(config, probe, bare)
    if config.rollout.prompt == "student":
        probe.reviewer.limits = find_limits(bare, (), probe.reviewer.given)
        return
    taught = probe.taught(0)
    probe.reviewer.limits = find_limits(bare, taught, probe.reviewer.given)
    template, temperature = config.context.template, config.rollout.temperature
    row = summarise(probe.reviewer.rule(taught), bare, probe.screen, template, temperature, 0.0)
    leak = "" if row.leak is None else f", leak {row.leak:.2f}"
    logger.info(
        f"probe: {row.n} rollouts of the teacher, {row.score:.0%} right, {row.keep_rate:.0%} kept, "
        f"{row.answer_only_rate:.0%} only the answer, {row.verbatim_rate:.0%} verbatim; {row.mean_length:.0f} tokens; "
        f"surprise {row.surprise:.2f}{leak} nats a token"
    )
    problem = teaches_shortcuts(row, bare, config)
    if problem and config.probe.action == "refuse":
        raise ConfigError(f"This would teach shortcuts: {problem}. {_FIX}")
    if problem:
        logger.warning(f"this may teach shortcuts: {problem}")


def _warn_of_terse_data(config: RunConfig, probe: Probe, bare: BareAnswers) -> None:
    """Say that the demonstrations themselves are answers without the work, where the policy's right answers have it."""
    lengths = [len(pair.response_ids) for pair in probe.pairs if pair.demonstration.response]
    length = median(lengths) if lengths else bare.length
    if bare.of_right and length < config.screening.answer_only_ratio * bare.length:
        logger.warning(
            f"the demonstrations are answers alone: {length:.0f} tokens (median), where the model's own right "
            f"answers take {bare.length:.0f}. What is learned will be as short, and the model may get worse where it "
            "needs the work. Fix: demonstrations with the work, or --context.show others --context.template work."
        )


def refresh(probe: Probe, step: int) -> BareAnswers:
    """Sample bare answers of the weights of now, and compare rollouts with them from here on."""
    screen = probe.screen
    screen.bare = bare_answers(probe.bare(step), screen.task, screen.decode).after(screen.bare)
    return screen.bare


def keep_probe(trainer: Trainer) -> None:
    """Put into the state of a run what a probe has set, for its checkpoints."""
    bare, reviewer = trainer.screen.bare, trainer.reviewer
    trainer.state.bare = asdict(bare) if bare is not None else None
    trainer.state.limits = asdict(reviewer.limits) if reviewer is not None else {}


def restore_probe(trainer: Trainer) -> None:
    """Put in place what a checkpoint holds of an earlier probe."""
    state = trainer.state
    trainer.screen.bare = BareAnswers(**state.bare) if state.bare else None
    if state.limits and trainer.reviewer is not None:
        trainer.reviewer.limits = Limits(**state.limits)


def refresh_run(trainer: Trainer, probe: Probe) -> None:
    """Refresh the bare answers of a run in the middle of it."""
    refresh(probe, trainer.state.step)
    keep_probe(trainer)
