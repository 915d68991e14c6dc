"""The probe as a job: every template at every temperature, one table."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from onpolicy_sdft.build.bundle import ModelBundle, context_window, load_bundle, require_writer
from onpolicy_sdft.build.data import Data
from onpolicy_sdft.build.method import (
    learns_packed,
    make_attempt_options,
    make_objective,
    make_pairing,
    make_policy_source,
    make_review,
    make_sampling,
    make_scorer,
    make_screen,
    make_weights,
)
from onpolicy_sdft.data.preflight import refuse_beyond_window
from onpolicy_sdft.data.prepare import Prepared, prepare
from onpolicy_sdft.data.sources import load_demonstrations
from onpolicy_sdft.data.templates import TeacherContext
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.first_probe import choose_rows
from onpolicy_sdft.eval.probe_rows import (
    BARE,
    ProbeRow,
    bare_answers,
    find_limits,
    recommend,
    summarise,
    teaches_shortcuts,
)
from onpolicy_sdft.eval.turn_end import report_turn_end
from onpolicy_sdft.models.lora import prepare_trainable
from onpolicy_sdft.models.packed import attention_of
from onpolicy_sdft.models.policy import Policy
from onpolicy_sdft.rollout.backend import NO_RECORD
from onpolicy_sdft.runs.progress import Progress, tick
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.protocol import work_of
from onpolicy_sdft.train.probe import Probe
from onpolicy_sdft.types import TrainingRow

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.models.weights import PolicyWeights
    from onpolicy_sdft.screening.bare import BareAnswers
    from onpolicy_sdft.tasks.protocol import Task
    from onpolicy_sdft.types import Demonstration, PromptPair

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """Rows of the probe's table, and what to make of them."""

    rows: tuple[ProbeRow, ...]
    recommendation: str
    problems: tuple[str, ...]  # settings that would teach shortcuts, and why
    learning_seconds: float  # expected per step, to be added to the writing


def run_probe(
    config: RunConfig,
    templates: Sequence[str],
    temperatures: Sequence[float],
    num_examples: int,
) -> ProbeOutcome:
    """Probe the model of a config on ``num_examples`` of its demonstrations, chosen by ``train.seed``.

    Raises:
        ConfigError: If a template is unknown, or fewer demonstrations are there than asked for.
    """
    if num_examples < 1 or not templates or not temperatures:
        raise ConfigError("A probe needs at least one of each: --num_examples, --templates, --temperatures.")
    for name in templates:
        TeacherContext(name, config.context.show)  # an unknown one is refused before anything is written
    require_writer(config)
    bundle = load_bundle(config)
    task = load_task(config.task.name, config.task.options)
    loaded = load_demonstrations(config.data, task)
    total = len(loaded.demonstrations)
    if num_examples > total:
        raise ConfigError(f"num_examples={num_examples}, but there are {total} demonstrations. Fix: ask for fewer.")
    probed = choose_rows(loaded.demonstrations, num_examples, config.train.seed)
    chosen = {demonstration.example_id for demonstration in probed}
    # Other examples come from the whole set, as in training.
    rows = loaded.demonstrations if config.context.show in ("others", "both") else probed
    prepared = {name: _prepare(config, name, bundle, rows, task) for name in templates}
    report_turn_end(config, bundle, prepared[templates[0]].pairs)
    weights = make_weights(config, bundle.loaded.model, nullcontext)
    bare: list[ProbeRow] = []
    conditioned: list[ProbeRow] = []
    problems: list[tuple[ProbeRow, str]] = []
    for temperature in temperatures:
        answers: BareAnswers | None = None
        for template in templates:
            asked = replace(
                config,
                context=replace(config.context, template=template),
                rollout=replace(config.rollout, temperature=temperature, temperature_end=None),
            )
            found = prepared[template]
            pairs = tuple(pair for pair in found.pairs if pair.demonstration.example_id in chosen)
            data = Data(task, loaded, replace(found, pairs=pairs))
            with Progress(f"probe at T={temperature:g}", None, "tokens") as progress:
                probe = _make_probe(asked, bundle, data, weights, progress)
                if answers is None:
                    row, answers = _ask_bare(probe, temperature)
                    bare.append(row)
                row = _ask_teacher(probe, template, temperature, answers)
            conditioned.append(row)
            if problem := teaches_shortcuts(row, answers, config):
                problems.append((row, f"T={temperature:g}: {problem}"))
    learning = _seconds_per_learning_step(config, bundle, pairs)
    said = recommend(bare, conditioned, [row for row, _ in problems])
    return ProbeOutcome((*bare, *conditioned), said, tuple(text for _, text in problems), learning)


def _prepare(
    config: RunConfig, template: str, bundle: ModelBundle, rows: Sequence[Demonstration], task: Task
) -> Prepared:
    """Make the prompts of a template fit as in a run; before anything is written."""
    window, max_new_tokens = context_window(bundle), config.rollout.max_new_tokens
    prepared = prepare(
        rows, bundle.renderer, replace(config.context, template=template), config.train.seed, work_of(task),
        on_bad_row=config.data.on_bad_row, window=window, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    refuse_beyond_window(prepared, max_new_tokens, window)
    return prepared


def _make_probe(
    config: RunConfig, bundle: ModelBundle, data: Data, weights: PolicyWeights, progress: Progress
) -> Probe:
    """Return what asks as a step with these options would."""
    backend = bundle.backend(bundle.loaded.model, config.rollout, config.rollout.batch_size)
    attempts = make_attempt_options(config, bundle, data, weights, num_workers=0)
    source = make_policy_source(config, backend, 1, weights, tick(progress), attempts)
    screen = make_screen(config, bundle, data)
    pairing = make_pairing(config, bundle.pad_token_id)
    reviewer = make_review(config, bundle, data.task, pairing, weights, source.answers)
    return Probe(data.prepared.pairs, source, screen, reviewer, partial(weights.showing, "live"))


def _ask_bare(probe: Probe, temperature: float) -> tuple[ProbeRow, BareAnswers]:
    """Return the row of the bare prompt, and the answers that the others are compared with."""
    logger.info(f"T={temperature:g}: bare answers")
    started = time.perf_counter()
    targets = probe.bare(0)
    seconds = time.perf_counter() - started
    answers = bare_answers(targets, probe.screen.task, probe.screen.decode)
    return summarise(targets, answers, probe.screen, BARE, temperature, seconds), answers


def _ask_teacher(probe: Probe, template: str, temperature: float, answers: BareAnswers) -> ProbeRow:
    """Return the row of a template; scoring counts in its time, as it does in a step."""
    logger.info(f"T={temperature:g}: {template}")
    probe.screen.bare = answers
    started = time.perf_counter()
    targets = probe.taught(0)
    seconds = time.perf_counter() - started
    probe.reviewer.limits = find_limits(answers, targets, probe.reviewer.given)
    ruled = probe.reviewer.rule(targets)
    return summarise(ruled, answers, probe.screen, template, temperature, seconds)


def _seconds_per_learning_step(config: RunConfig, bundle: ModelBundle, pairs: Sequence[PromptPair]) -> float:
    """Time forward and backward of one step's worth of demonstrations; nothing is updated.

    Scoring is included where the rollouts would not have recorded the teacher's distributions.
    """
    model = prepare_trainable(bundle.loaded.model, config.lora, config.model, config.train.seed)
    policy, objective = Policy(model), make_objective(config)
    rows = [
        TrainingRow(pair.student_ids, pair.response_ids, pair.teacher_ids) for pair in pairs[: config.train.batch_size]
    ]
    device = next(model.parameters()).device

    def bf16() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16")

    packed = learns_packed(config, model, device, bf16)
    pairing = make_pairing(config, bundle.pad_token_id, packed=packed)
    policy.train()
    teacher_scorer = make_scorer(config, make_weights(config, model, bf16), objective, bundle.pad_token_id)
    is_recorded = make_sampling(config, num_steps=1).record != NO_RECORD
    seconds = 0.0
    with Progress("probe: learning", len(rows), "targets") as progress:
        for group in pairing.split(rows):
            batch = pairing.batch(group, device)
            started = time.perf_counter()
            (loss_inputs,) = teacher_scorer([batch])
            started = time.perf_counter() if is_recorded else started
            with attention_of(batch, policy):
                with bf16():
                    loss, _ = policy(batch, objective, loss_inputs)
                loss.backward()
            seconds += time.perf_counter() - started
            progress.update(len(group))
    policy.zero_grad(set_to_none=True)
    return seconds * config.train.batch_size * config.rollout.num_samples / len(rows)
