"""The probe as a job: every template at every temperature, one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onpolicy_sdft.jobs.parts import load_chat, tick
from onpolicy_sdft.data.order import permutation
from onpolicy_sdft.data.sources import load_demonstrations
from onpolicy_sdft.data.templates import TeacherContext
from onpolicy_sdft.data.views import prepare
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.probe import ProbeRow, probe, recommend
from onpolicy_sdft.rollout.sampling import SamplingLaw
from onpolicy_sdft.runs.progress import Progress
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks import load_task

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """Rows of the probe's table, and what to make of them."""

    rows: tuple[ProbeRow, ...]
    recommendation: str


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
    chosen = [loaded.demonstrations[i] for i in permutation(total, config.train.seed, 0)[:num_examples]]
    screen = Screen(config.screening, task, chat.renderer.decode)
    backend = chat.backend(chat.loaded.model, config.rollout.batch_size)
    rollout = config.rollout
    bare: list[ProbeRow] = []
    conditioned: list[ProbeRow] = []
    for temperature in temperatures:
        law = SamplingLaw(temperature, rollout.top_k, rollout.top_p, rollout.min_p)
        for template in ("bare", *templates):
            shown = config.context.template if template == "bare" else template
            context = dataclasses.replace(config.context, template=shown)
            views = prepare(chosen, chat.renderer, context, config.train.seed).views
            with Progress(f"probe {template} at T={temperature:g}", len(views), "rollouts") as progress:
                row = probe(
                    views, template=template, law=law, backend=backend, screen=screen, task=task,
                    max_new_tokens=rollout.max_new_tokens, seed=config.train.seed, on_progress=tick(progress),
                )  # fmt: skip
            (bare if template == "bare" else conditioned).append(row)
    return ProbeOutcome((*bare, *conditioned), recommend(bare, conditioned))
