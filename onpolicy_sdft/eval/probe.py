"""Is the conditioned model a good teacher? Measured before anything is trained.

For each context template and temperature: how often the bare model is right, how often the model that is shown
the demonstration is right, how much of that is copying, what the screen would do, and what a step would cost.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onpolicy_sdft.eval.answers import EVAL_STEP
from onpolicy_sdft.eval.intervals import wilson_interval
from onpolicy_sdft.types import NoiseKey, Rollout, RolloutRequest, SamplingLaw, Views

if TYPE_CHECKING:
    from onpolicy_sdft.rollout.backend import OnProgress, RolloutBackend
    from onpolicy_sdft.screening.screen import Screen
    from onpolicy_sdft.tasks.protocol import Task


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """What one way of asking gives, over n examples."""

    template: str  # "bare" for the student's prompt
    temperature: float
    n: int
    score: float
    low: float  # 95 % Wilson interval of the score
    high: float
    keep_rate: float  # the screen's verdicts, no second attempts
    reasons: dict[str, int]  # rollouts refused, by reason
    verbatim_rate: float  # the demonstration, word for word
    entropy: float  # mean over tokens, nats
    mean_length: float
    length_ratio: float  # to the demonstrations
    seconds_per_rollout: float


def probe(
    views: Sequence[Views],
    *,
    template: str,
    law: SamplingLaw,
    backend: RolloutBackend,
    screen: Screen,
    task: Task,
    max_new_tokens: int,
    seed: int,
    on_progress: OnProgress,
) -> ProbeRow:
    """Ask the model once per example, with the demonstration in context, or without for template ``bare``."""
    requests = [
        RolloutRequest(
            v.student_ids if template == "bare" else v.teacher_ids,
            NoiseKey(seed, EVAL_STEP, v.demonstration.example_id),
            max_new_tokens,
        )
        for v in views
    ]
    started = time.perf_counter()
    rollouts = backend.generate(requests, law, on_progress)
    seconds = time.perf_counter() - started
    return summarise_probe(views, rollouts, template, law.temperature, screen, task, seconds)


def summarise_probe(
    views: Sequence[Views],
    rollouts: Sequence[Rollout],
    template: str,
    temperature: float,
    screen: Screen,
    task: Task,
    seconds: float,
) -> ProbeRow:
    """Turn rollouts into a row of the probe's table."""
    n, texts = len(views), [screen.decode(rollout.token_ids) for rollout in rollouts]
    right = sum(task.check(text, v.demonstration).correct for text, v in zip(texts, views, strict=True))
    reasons = [screen.reason(v, r, t) for v, r, t in zip(views, rollouts, texts, strict=True)]
    copied = sum(t.strip() == v.demonstration.response.strip() for t, v in zip(texts, views, strict=True))
    num_tokens = sum(len(rollout.token_ids) for rollout in rollouts)
    low, high = wilson_interval(right, n)
    return ProbeRow(
        template=template,
        temperature=temperature,
        n=n,
        score=right / n,
        low=low,
        high=high,
        keep_rate=reasons.count("") / n,
        reasons=dict(Counter(reason for reason in reasons if reason)),
        verbatim_rate=copied / n,
        entropy=sum(sum(rollout.entropies) for rollout in rollouts) / num_tokens,
        mean_length=num_tokens / n,
        length_ratio=num_tokens / sum(len(v.response_ids) for v in views),
        seconds_per_rollout=seconds / n,
    )


def recommend(bare: Sequence[ProbeRow], conditioned: Sequence[ProbeRow]) -> str:
    """Say which way of showing the demonstration to take, and when none is any good.

    The measure is the share of rollouts that would be learned and are not plain copies: copies teach what plain
    fine-tuning teaches, and refused rollouts are replaced by the demonstration.
    """
    best = max(conditioned, key=lambda row: row.keep_rate - row.verbatim_rate)
    own = best.keep_rate - best.verbatim_rate
    reference = max(row.score for row in bare)
    where = f"context.template={best.template}, rollout.temperature={best.temperature:g}"
    if own < 0.1:
        return (
            f"No setting is a good teacher: at best ({where}) {own:.0%} of the rollouts would be learned as the "
            "model's own words, so training would be close to plain fine-tuning. Try a lower temperature, more "
            "rollout.max_new_tokens, another template, or a larger model."
        )
    if best.score <= reference:
        return (
            f"Best is {where}, but the model is not better with the demonstration ({best.score:.2f}) than without "
            f"({reference:.2f}): there is little to learn from it."
        )
    return (
        f"Take {where}: {own:.0%} of the rollouts would be learned as the model's own words "
        f"(score {best.score:.2f} with the demonstration, {reference:.2f} without)."
    )
