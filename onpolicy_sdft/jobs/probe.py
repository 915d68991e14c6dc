"""The probe as a job: every template at every temperature, one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from onpolicy_sdft.data.order import permutation
from onpolicy_sdft.data.sources import load_demonstrations
from onpolicy_sdft.data.templates import TeacherContext
from onpolicy_sdft.data.views import prepare
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.probe import (
    BARE,
    ProbeRow,
    bare_answers,
    find_limits,
    judge,
    recommend,
    request,
    summarise,
    teaches_shortcuts,
)
from onpolicy_sdft.jobs.method import (
    learns_packed,
    make_objective,
    make_pairing,
    make_review,
    make_sampling,
    make_teacher,
)
from onpolicy_sdft.jobs.parts import Chat, load_chat, sampling_law, tick
from onpolicy_sdft.models.lora import prepare_trainable
from onpolicy_sdft.models.packed import attention_of
from onpolicy_sdft.models.policy import Policy
from onpolicy_sdft.rollout.backend import NO_RECORD
from onpolicy_sdft.runs.progress import Progress
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.protocol import work_of
from onpolicy_sdft.train.laws import LawSource
from onpolicy_sdft.types import Row

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.models.teacher import Teacher
    from onpolicy_sdft.screening.bare import BareAnswers
    from onpolicy_sdft.tasks.protocol import Task
    from onpolicy_sdft.types import Rollout, RolloutRequest, Views


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
    say: Callable[[str], None],
) -> ProbeOutcome:
    """Probe the model of a config on ``num_examples`` of its demonstrations, chosen by ``train.seed``.

    Raises:
        ConfigError: If a template is unknown, or fewer demonstrations are there than asked for.
    """
    if num_examples < 1 or not templates or not temperatures:
        raise ConfigError("A probe needs at least one of each: --num_examples, --templates, --temperatures.")
    for name in templates:
        TeacherContext(name, config.context.show)  # an unknown one is refused before anything is written
    chat = load_chat(config, say)
    task = load_task(config.task.name, config.task.options)
    loaded = load_demonstrations(config.data, task)
    total = len(loaded.demonstrations)
    if num_examples > total:
        raise ConfigError(f"num_examples={num_examples}, but there are {total} demonstrations. Way out: ask for fewer.")
    chosen = {loaded.demonstrations[i].example_id for i in permutation(total, config.train.seed, 0)[:num_examples]}
    # Other examples of a k-shot context come from the whole set, as in training.
    rows = loaded.demonstrations if config.context.show != "own" else [
        demonstration for demonstration in loaded.demonstrations if demonstration.example_id in chosen
    ]  # fmt: skip
    asking = _Asking(config, chat, task, make_teacher(config, chat.loaded.model, nullcontext), say)
    bare: list[ProbeRow] = []
    conditioned: list[ProbeRow] = []
    problems: list[str] = []
    for temperature in temperatures:
        answers: BareAnswers | None = None
        for template in (BARE, *templates):
            shown = config.context.template if template == BARE else template
            context = replace(config.context, template=shown)
            prepared = prepare(rows, chat.renderer, context, config.train.seed, work_of(task)).views
            views = [view for view in prepared if view.demonstration.example_id in chosen]
            row, answers = asking(views, template, temperature, answers)
            (bare if template == BARE else conditioned).append(row)
            if template != BARE and (problem := teaches_shortcuts(row, answers, config.probe)):
                problems.append(f"T={temperature:g}: {problem}")
    learning = _seconds_per_learning_step(config, chat, views)
    return ProbeOutcome((*bare, *conditioned), recommend(bare, conditioned), tuple(problems), learning)


@dataclass
class _Asking:
    """Asks the model one way after the other, with the noise of each row the same."""

    config: RunConfig
    chat: Chat
    task: Task
    teacher: Teacher
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        config, chat = self.config, self.chat
        self.screen = Screen(config.screening, self.task, chat.renderer.decode)
        self.backend = chat.backend(chat.loaded.model, config.rollout, config.rollout.batch_size, self.say)
        self.law = sampling_law(config.rollout)
        pairing = make_pairing(config, chat.pad_token_id)

        def sample(requests: Sequence[RolloutRequest], step: int) -> Sequence[Rollout]:
            return self.backend.generate(requests, self.law)

        self.reviewer = make_review(config, chat, self.task, pairing, self.teacher, sample)

    def __call__(
        self, views: Sequence[Views], template: str, temperature: float, answers: BareAnswers | None
    ) -> tuple[ProbeRow, BareAnswers]:
        """Return a row of the table, and the bare answers it is compared with: these ones where there are none yet."""
        self.law = replace(self.law, temperature=temperature)
        requests = [
            request(view, view.student_ids if template == BARE else view.teacher_ids, self.config) for view in views
        ]
        with Progress(f"probe {template} at T={temperature:g}", len(views), "rollouts") as progress:
            started = time.perf_counter()
            rollouts = self.backend.generate(requests, self.law, tick(progress))
            seconds = time.perf_counter() - started
        if answers is None:
            self.screen.bare = None
        targets = judge(views, rollouts, self.screen, self.reviewer)
        if answers is None:
            answers = self.screen.bare = bare_answers(targets, self.task, self.chat.renderer.decode)
        self.reviewer.limits = find_limits(answers, targets, self.reviewer.given)
        targets = self.reviewer.rule(targets)
        return summarise(targets, answers, self.screen, template, temperature, seconds), answers


def _seconds_per_learning_step(config: RunConfig, chat: Chat, views: Sequence[Views]) -> float:
    """Time forward and backward of one step's worth of demonstrations; nothing is updated.

    Scoring is included where the rollouts would not have recorded the teacher's laws.
    """
    model = prepare_trainable(chat.loaded.model, config.lora, config.model, config.train.seed)
    policy, objective = Policy(model), make_objective(config)
    rows = [Row(view.student_ids, view.response_ids, view.teacher_ids) for view in views[: config.train.batch_size]]
    device = next(model.parameters()).device

    def bf16() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16")

    packed = learns_packed(config, model, device, bf16, chat.say)
    pairing = make_pairing(config, chat.pad_token_id, packed=packed)
    policy.train()
    laws = LawSource(make_teacher(config, model, bf16), objective, chat.pad_token_id)
    is_recorded = make_sampling(config, num_steps=1).record != NO_RECORD
    seconds = 0.0
    with Progress("probe: learning", len(rows), "targets") as progress:
        for group in pairing.split(rows):
            batch = pairing.batch(group, device)
            started = time.perf_counter()
            (signals,) = laws([batch])
            started = time.perf_counter() if is_recorded else started
            with attention_of(batch, policy):
                with bf16():
                    loss, _ = policy(batch, objective, signals)
                loss.backward()
            seconds += time.perf_counter() - started
            progress.update(len(group))
    policy.zero_grad(set_to_none=True)
    return seconds * config.train.batch_size * config.rollout.num_samples / len(rows)
