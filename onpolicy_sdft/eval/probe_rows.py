"""Is the model, shown the demonstration, a good teacher? Measured before anything is trained.

For each context template and temperature: how often the bare model is right, how often the model that is shown the
demonstration is right, how much of that is copying or leaves the work out, how it looks from the bare prompt, what
each rule of screening would refuse, and what a step would cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onpolicy_sdft.eval.intervals import wilson_interval
from onpolicy_sdft.screening.bare import BareAnswer, BareAnswers
from onpolicy_sdft.screening.review import Limits
from onpolicy_sdft.tasks.protocol import has_check
from onpolicy_sdft.types import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.screening.screen import Screen
    from onpolicy_sdft.tasks.protocol import Task

BARE = "bare"

#: Settings whose shares of rollouts worth learning differ by less than this are equal: of few rows it is noise.
_EQUAL = 0.1


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
    refused_right: dict[str, int]  # of them, those that the check accepts
    verbatim_rate: float  # see `Target.is_verbatim`
    worth_rate: float  # kept, and neither a copy nor only an answer
    answer_only_rate: float  # without the work that bare answers do
    surprise: float  # mean -log p under the bare prompt, nats a token
    leak: float | None  # how much likelier the demonstration alone makes them, nats a token
    entropy: float  # mean over tokens, nats
    mean_length: float
    length_ratio: float  # to the demonstrations
    bare_ratio: float  # to the bare answers that are compared with
    seconds_per_rollout: float


def bare_answers(targets: Sequence[Target], task: Task, decode: Callable[[Sequence[int]], str]) -> BareAnswers:
    """Summarise bare answers; where a task has no check, none of them counts as right."""
    return BareAnswers.of(
        [
            BareAnswer(
                num_tokens=len(target.rollout.token_ids),
                text=decode(target.rollout.token_ids),
                surprise=-sum(target.rollout.logprobs) / len(target.rollout.logprobs),
                correct=bool(target.correct) and has_check(task, target.pair.demonstration),
            )
            for target in targets
            if target.rollout is not None
        ]
    )


def summarise(
    targets: Sequence[Target], bare: BareAnswers, screen: Screen, template: str, temperature: float, seconds: float
) -> ProbeRow:
    """Turn judged rollouts into a row of the probe's table.

    Args:
        targets: Measured rollouts of the rows, each with the check's verdict; at least one.
        bare: What they are compared with.
        screen: Tells which leave the work out.
        template: How they were asked for.
        temperature: Likewise.
        seconds: That writing took.
    """
    n = len(targets)
    rollouts = [(target, target.rollout) for target in targets if target.rollout is not None]
    texts = [screen.decode(rollout.token_ids) for _, rollout in rollouts]
    refused = [target for target, _ in rollouts if target.verdict != "keep"]
    right = sum(bool(target.correct) for target, _ in rollouts)
    pairs = list(zip(texts, rollouts, strict=True))
    copies = [target.is_verbatim for target, _ in rollouts]
    shorts = [screen.is_answer_only(target.pair, rollout, text) for text, (target, rollout) in pairs]
    num_tokens = sum(len(rollout.token_ids) for _, rollout in rollouts)
    measures = [target.measures for target, _ in rollouts if target.measures is not None]
    leaks = [each.leak for each in measures if each.leak is not None]
    low, high = wilson_interval(right, n)
    return ProbeRow(
        template=template,
        temperature=temperature,
        n=n,
        score=right / n,
        low=low,
        high=high,
        keep_rate=1 - len(refused) / n,
        reasons=dict(Counter(target.reason for target in refused)),
        refused_right=dict(Counter(target.reason for target in refused if target.correct)),
        verbatim_rate=sum(copies) / n,
        worth_rate=sum(
            target.verdict == "keep" and not copy and not short
            for (target, _), copy, short in zip(rollouts, copies, shorts, strict=True)
        )
        / n,
        answer_only_rate=sum(shorts) / n,
        surprise=float(np.mean([each.surprise for each in measures])) if measures else bare.surprise,
        leak=float(np.mean(leaks)) if leaks else None,
        entropy=sum(sum(rollout.entropies) for _, rollout in rollouts) / num_tokens,
        mean_length=num_tokens / n,
        length_ratio=num_tokens / sum(len(target.pair.response_ids) for target in targets),
        bare_ratio=num_tokens / n / bare.length,
        seconds_per_rollout=seconds / n,
    )


def find_limits(bare: BareAnswers, taught: Sequence[Target], given: Limits) -> Limits:
    """Return the bounds of the review's rules, those that were not given from what the policy wrote.

    Work in its own words is at most a few times as surprising as its own bare answers. A rewrite must support its
    demonstration by more than rewrites of other rows differ among themselves. docs/methods.md has what was measured.
    """
    surprise = given.max_surprise
    if surprise is None:
        surprise = max(_SURPRISE_TIMES * bare.surprise_high, bare.surprise_high + _SURPRISE_NATS)
    leak = _LEAK_NATS if given.max_leak is None else given.max_leak
    spreads = [t.measures.support_spread for t in taught if t.measures is not None]
    known = [spread for spread in spreads if spread is not None]
    support = given.min_support
    if support is None and known:
        support = float(np.sqrt(np.mean(np.square(known))))
    return Limits(surprise, leak, support)


#: A rollout may surprise the bare prompt this many times, and in any case so many nats more, than nine of ten bare
#: answers do; and the demonstration alone may explain it by so many nats a token better than the bare prompt.
_SURPRISE_TIMES, _SURPRISE_NATS, _LEAK_NATS = 2.0, 0.3, 0.5


def recommend(bare: Sequence[ProbeRow], conditioned: Sequence[ProbeRow], refused: Sequence[ProbeRow] = ()) -> str:
    """Say which way of showing the demonstration to take and why, and when none is any good.

    Ways in ``refused`` would teach shortcuts, and are taken only where there is no other.

    The measure is the share of rollouts that would be learned and are not plain copies: copies teach what plain
    fine-tuning teaches, and refused rollouts are replaced by the demonstration. Of those that are as good, the one that
    surprises the bare policy least moves it least.
    """
    conditioned = [row for row in conditioned if row not in refused] or conditioned
    most = max(row.worth_rate for row in conditioned)
    best = min((row for row in conditioned if row.worth_rate > most - _EQUAL), key=lambda row: row.surprise)
    reference = max(bare, key=lambda row: row.score)
    where = f"context.template={best.template}, rollout.temperature={best.temperature:g}"
    if best.worth_rate < _EQUAL:
        return (
            f"No setting is a good teacher: at best ({where}) {best.worth_rate:.0%} of the rollouts would be learned "
            "as the model's own words, so training would be close to plain fine-tuning. Try a lower temperature, more "
            "rollout.max_new_tokens, another template, or a larger model."
        )
    if best in refused:
        return f"No setting is a good teacher: all of them would teach shortcuts, {where} the least."
    if best.score <= reference.score:
        return (
            f"Best is {where}, but the model is not better with the demonstration ({best.score:.2f}) than without "
            f"({reference.score:.2f}): there is little to learn from it."
        )
    return (
        f"Take {where}: {best.worth_rate:.0%} of the rollouts would be learned as the model's own words, at "
        f"{best.surprise:.2f} nats a token under the bare prompt (bare answers: {reference.surprise:.2f}); "
        f"score {best.score:.2f} with the demonstration, {reference.score:.2f} without."
    )


def teaches_shortcuts(row: ProbeRow, bare: BareAnswers, config: RunConfig) -> str:
    """Return why a setting would teach shortcuts, empty if it would not.

    Args:
        row: What the teacher wrote.
        bare: What the policy writes by itself.
        config: Its ``probe`` has the bounds.
    """
    probe = config.probe
    if row.answer_only_rate > probe.max_answer_only and row.answer_only_rate * row.n >= _FEWEST:
        right = "right " if bare.of_right else ""
        return (
            f"{row.answer_only_rate:.0%} of the rollouts under context.template={row.template} state the answer "
            f"without the work, in much fewer tokens than the model's own {right}answers (median {bare.length:.0f})"
        )
    # Short demonstrations are surprising too, and are what the data asks for; `look` warns of them.
    is_terse = row.mean_length / row.length_ratio < config.screening.answer_only_ratio * bare.length
    highest = probe.max_surprise_ratio * max(bare.surprise_high, _SURE_NATS)
    if bare.of_right and not is_terse and row.keep_rate and row.surprise > highest:
        return (
            f"the rollouts under context.template={row.template} surprise the model that sees the bare prompt: "
            f"{row.surprise:.2f} nats a token, its own answers {bare.surprise:.2f}"
        )
    return ""


#: Bare answers of a policy that is nearly sure are taken to have this much surprise: multiples of less say nothing.
_SURE_NATS = 0.05

#: Shortcuts among the rows of a probe that may be chance.
_FEWEST = 2
