"""The probe as a job: every template at every temperature, one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from onpolicy_sdft.data.order import permutation
from onpolicy_sdft.data.sources import load_demonstrations
from onpolicy_sdft.data.templates import TeacherContext
from onpolicy_sdft.data.views import prepare
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.probe import ProbeRow, probe, recommend
from onpolicy_sdft.jobs.method import learns_packed, make_objective, make_pairing, make_sampling, make_teacher
from onpolicy_sdft.jobs.parts import Chat, load_chat, sampling_law, tick
from onpolicy_sdft.models.lora import prepare_trainable
from onpolicy_sdft.models.packed import attention_of
from onpolicy_sdft.models.policy import Policy
from onpolicy_sdft.rollout.backend import NO_RECORD
from onpolicy_sdft.runs.progress import Progress
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.train.laws import LawSource
from onpolicy_sdft.types import Row

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.types import Views


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """Rows of the probe's table, and what to make of them."""

    rows: tuple[ProbeRow, ...]
    recommendation: str
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
        TeacherContext(name)  # an unknown one is refused before anything is written
    chat = load_chat(config, say)
    task = load_task(config.task.name, config.task.options)
    loaded = load_demonstrations(config.data, task)
    total = len(loaded.demonstrations)
    if num_examples > total:
        raise ConfigError(f"num_examples={num_examples}, but there are {total} demonstrations. Way out: ask for fewer.")
    chosen = {loaded.demonstrations[i].example_id for i in permutation(total, config.train.seed, 0)[:num_examples]}
    # Other examples of a k-shot context come from the whole set, as in training.
    rows = loaded.demonstrations if config.context.num_demonstrations > 1 else [
        demonstration for demonstration in loaded.demonstrations if demonstration.example_id in chosen
    ]  # fmt: skip
    screen = Screen(config.screening, task, chat.renderer.decode)
    backend = chat.backend(chat.loaded.model, config.rollout, config.rollout.batch_size, say)
    rollout = config.rollout
    bare: list[ProbeRow] = []
    conditioned: list[ProbeRow] = []
    for temperature in temperatures:
        law = replace(sampling_law(rollout), temperature=temperature)
        for template in ("bare", *templates):
            shown = config.context.template if template == "bare" else template
            context = replace(config.context, template=shown)
            prepared = prepare(rows, chat.renderer, context, config.train.seed).views
            views = [view for view in prepared if view.demonstration.example_id in chosen]
            with Progress(f"probe {template} at T={temperature:g}", len(views), "rollouts") as progress:
                row = probe(
                    views, template=template, law=law, backend=backend, screen=screen, task=task,
                    max_new_tokens=rollout.max_new_tokens, seed=config.train.seed, on_progress=tick(progress),
                )  # fmt: skip
            (bare if template == "bare" else conditioned).append(row)
    learning = _seconds_per_learning_step(config, chat, views)
    return ProbeOutcome((*bare, *conditioned), recommend(bare, conditioned), learning)


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
