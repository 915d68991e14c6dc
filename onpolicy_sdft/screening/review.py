"""The second half of screening: what the policy itself, shown the bare prompt only, makes of each rollout.

A check sees only the end of a text. Under the bare prompt a shortcut and a copy are surprising, work in the model's
own words is not; and what is learned with little surprise moves the model little. One batched forward measures all
rollouts of a step (see :class:`~onpolicy_sdft.types.Measures`); each measure has a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from onpolicy_sdft.screening.reasons import REVIEW_REASONS
from onpolicy_sdft.screening.screen import refused
from onpolicy_sdft.tasks.protocol import checks
from onpolicy_sdft.types import Measures, NoiseKey, Rollout, RolloutRequest, Target, Verdict, Views

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import ScreeningConfig
    from onpolicy_sdft.tasks.protocol import Task

#: A prompt and what stands behind it, as token ids.
Text = tuple[Sequence[int], Sequence[int]]

#: Attempts of noise keys that no draw of a target has: bare answers, and continuations of a rollout's first half.
_BARE_ATTEMPT, _STEP_ATTEMPT = 1_000_000, 2_000_000


#: Rewrites of other rows that a rewrite without a check is compared with.
_NUM_CONTROLS = 3


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts that only measures use."""

    alone: Callable[[Views], Sequence[int]]  # shows the demonstration without the question
    shown: Callable[[Views, str], Sequence[int]]  # the question with a text in the demonstration's place


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the rules, as given or as the probe found them. None: that rule refuses nothing."""

    max_surprise: float | None = None
    max_leak: float | None = None
    min_support: float | None = None


class Review:
    """Measures rollouts under the policy's own weights, which must be in place, and applies the rules.

    Args:
        config: Verdict and threshold of each rule.
        task: Its check judges bare continuations and bare answers.
        decode: Token ids to text.
        score: Log-probabilities of target tokens behind prompts.
        sample: Completions of requests at a step's sampling parameters.
        prompts: For the measures.
        max_new_tokens: Longest completion.
        seed: Of noise keys.
    """

    def __init__(
        self,
        config: ScreeningConfig,
        task: Task,
        decode: Callable[[Sequence[int]], str],
        score: Callable[[Sequence[Text]], Sequence[Sequence[float]]],
        sample: Callable[[Sequence[RolloutRequest], int], Sequence[Rollout]],
        prompts: Prompts,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self.config = config
        self.task = task
        self.decode = decode
        self.score = score
        self.sample = sample
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.given = Limits(config.max_surprise, config.max_leak, config.min_support)
        self.limits = self.given
        self.verdicts: dict[str, Verdict] = {reason: getattr(config, reason) for reason in REVIEW_REASONS}

    def __call__(self, targets: Sequence[Target], step: int) -> list[Target]:
        """Return the targets with their measures, and with the verdicts that follow from these."""
        return self.rule(self.measure(targets, step))

    def measure(self, targets: Sequence[Target], step: int) -> list[Target]:
        """Return the targets with their measures."""
        return self._ask_bare(self._test_steps(self._score(targets), step), step)

    def rule(self, targets: Sequence[Target]) -> list[Target]:
        """Return measured targets with the verdicts of the rules."""
        return [self._judge(target) for target in targets]

    def reason(self, target: Target) -> str:
        """Return the first rule that a target's rollout breaks; empty when there is none."""
        measures, limits = target.measures, self.limits
        if measures is None:
            return ""
        holds = {
            "surprise": _above(measures.surprise, limits.max_surprise),
            "leak": _above(measures.leak, limits.max_leak),
            "support": _above(limits.min_support, measures.support),
            "steps": _above(self.config.min_step_rate, measures.step_rate),
            "solved": _above(measures.solved_rate, self.config.max_solved_rate),
        }
        return next((name for name in REVIEW_REASONS if self.verdicts[name] != "keep" and holds[name]), "")

    def _judge(self, target: Target) -> Target:
        if target.verdict != "keep" or target.rollout is None:
            return target
        reason = self.reason(target)
        if reason:
            return refused(target, self.verdicts[reason], reason)
        rate = target.measures.solved_rate if target.measures else None
        return replace(target, weight=1.0 - rate) if rate is not None and self.config.weigh_by_failure else target

    def _score(self, targets: Sequence[Target]) -> list[Target]:
        """Score every rollout behind the bare prompt and behind the demonstration alone, in one call."""
        config = self.config
        written = [target for target in targets if target.rollout is not None] if self._measures_any() else []
        with_leak = config.measure or self.verdicts["leak"] != "keep"
        judged = [target for target in written if self._is_judged(target)]
        texts: list[Text] = [(t.views.student_ids, _ids(t)) for t in written if not _is_bare(t)]
        texts += [(self.prompts.alone(t.views), _ids(t)) for t in written] if with_leak else []
        shown = [self._support_texts(judged, index) for index in range(len(judged))]
        texts += [text for each in shown for text in each]
        scores = iter(self.score(texts) if texts else ())
        bare = [t.rollout.logprobs if t.rollout and _is_bare(t) else next(scores) for t in written]
        alone = [next(scores) for _ in written] if with_leak else [None] * len(written)
        found = {id(target): _measures(own, other) for target, own, other in zip(written, bare, alone, strict=True)}
        for target, each in zip(judged, shown, strict=True):
            own, *others = (_mean(next(scores)) for _ in each)
            support, spread = own - fmean(others), pstdev(others) if len(others) > 1 else None
            found[id(target)] = replace(found[id(target)], support=support, support_spread=spread)
        return [replace(target, measures=found.get(id(target))) for target in targets]

    def _measures_any(self) -> bool:
        config = self.config
        has_rule = any(verdict != "keep" for verdict in self.verdicts.values())
        return config.measure or config.pick == "best" or config.bare_samples > 0 or has_rule

    def _is_judged(self, target: Target) -> bool:
        """Whether its own rewrite has to stand in for a check."""
        has_rule = target.verdict == "keep" and self.verdicts["support"] != "keep"
        return has_rule and not checks(self.task, target.views.demonstration)

    def _support_texts(self, judged: Sequence[Target], index: int) -> list[Text]:
        """Return the demonstration behind its own rewrite, and behind those of the next few rows of the step.

        A row that is alone is compared with its bare prompt.
        """
        views, text = judged[index].views, judged[index].text
        name = views.demonstration.example_id
        others = [t.text for t in (*judged[index + 1 :], *judged[:index]) if t.views.demonstration.example_id != name]
        controls = [self.prompts.shown(views, other) for other in others[:_NUM_CONTROLS]] or [views.student_ids]
        return [(prompt, views.response_ids) for prompt in (self.prompts.shown(views, text), *controls)]

    def _test_steps(self, targets: Sequence[Target], step: int) -> list[Target]:
        """Let the bare policy go on from the first half of each kept rollout, and check where it ends."""
        if self.verdicts["steps"] == "keep":
            return list(targets)
        kept = [target for target in targets if target.verdict == "keep" and len(_ids(target)) > 1]
        halves = {id(target): _ids(target)[: len(_ids(target)) // 2] for target in kept}
        asked = [(target, sample) for target in kept for sample in range(self.config.step_samples)]
        written = self.sample(
            [
                self._request(target, step, _STEP_ATTEMPT + sample, halves[id(target)], self.config.step_samples)
                for target, sample in asked
            ],
            step,
        )
        rates: dict[int, list[bool]] = {}
        for (target, _), rollout in zip(asked, written, strict=True):
            text = self.decode((*halves[id(target)], *rollout.token_ids))
            right = self.task.check(text, target.views.demonstration).correct
            rates.setdefault(id(target), []).append(right)
        return [_with(target, step_rate=_share(rates.get(id(target)))) for target in targets]

    def _ask_bare(self, targets: Sequence[Target], step: int) -> list[Target]:
        """Let the bare policy answer each prompt itself, once for all samples of a demonstration."""
        if not self.config.bare_samples:
            return list(targets)
        written = [target for target in targets if target.rollout is not None]
        first = {target.views.demonstration.example_id: target for target in reversed(written)}
        asked = [(target, sample) for target in first.values() for sample in range(self.config.bare_samples)]
        count = self.config.bare_samples
        requests = [self._request(target, step, _BARE_ATTEMPT + sample, (), count) for target, sample in asked]
        answers = self.sample(requests, step)
        rates: dict[str, list[bool]] = {}
        for (target, _), rollout in zip(asked, answers, strict=True):
            demonstration = target.views.demonstration
            right = self.task.check(self.decode(rollout.token_ids), demonstration).correct
            rates.setdefault(demonstration.example_id, []).append(right)
        return [_with(t, solved_rate=_share(rates.get(t.views.demonstration.example_id))) for t in targets]

    def _request(
        self, target: Target, step: int, attempt: int, begun: Sequence[int], num_samples: int
    ) -> RolloutRequest:
        views = target.views
        # Samples of one demonstration have each their own noise here too.
        key = NoiseKey(
            self.seed, step, views.demonstration.example_id, views.sample_index, attempt + num_samples * target.attempt
        )
        return RolloutRequest((*views.student_ids, *begun), key, max(1, self.max_new_tokens - len(begun)))


def _measures(bare: Sequence[float], alone: Sequence[float] | None) -> Measures:
    leak = None if alone is None else _mean(alone) - _mean(bare)
    return Measures(surprise=-_mean(bare), surprise_max=-min(bare), leak=leak)


def _with(target: Target, *, step_rate: float | None = None, solved_rate: float | None = None) -> Target:
    if step_rate is None and solved_rate is None:
        return target
    measures = target.measures
    assert measures is not None  # of whatever was written
    step_rate = measures.step_rate if step_rate is None else step_rate
    solved_rate = measures.solved_rate if solved_rate is None else solved_rate
    return replace(target, measures=replace(measures, step_rate=step_rate, solved_rate=solved_rate))


def _is_bare(target: Target) -> bool:
    """Whether the policy wrote a rollout under the bare prompt: its log-probabilities are there."""
    return target.rollout is not None and target.rollout.prompt_token_ids == target.views.student_ids


def _ids(target: Target) -> tuple[int, ...]:
    return () if target.rollout is None else target.rollout.token_ids


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _share(rights: Sequence[bool] | None) -> float | None:
    return None if rights is None else sum(rights) / len(rights)


def _above(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value > bound
