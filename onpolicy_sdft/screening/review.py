"""The second half of screening: what the policy itself, shown the bare prompt only, makes of each rollout.

A check sees only the end of a text. Under the bare prompt a shortcut and a copy are surprising, work in the model's
own words is not; and what is learned with little surprise moves the model little. One batched forward measures all
rollouts of a step (see :class:`~onpolicy_sdft.types.Measures`); each measure has a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, TypeVar

from onpolicy_sdft.config.schema import REVIEW_RULES
from onpolicy_sdft.screening.screen import refused
from onpolicy_sdft.tasks.protocol import Checker, has_check
from onpolicy_sdft.types import Measures, NoiseKey, PromptPair, Rollout, RolloutRequest, Target, Verdict

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import ScreeningConfig
    from onpolicy_sdft.tasks.protocol import Task

#: A prompt and what stands behind it, as token ids.
Text = tuple[Sequence[int], Sequence[int]]

_Key = TypeVar("_Key", bound=Hashable)

#: Example, sample and text of the rewrites of a rank.
_Named = list[tuple[str, int, str]]

#: Rewrites of other rows that a rewrite without a check is compared with.
_NUM_CONTROLS = 3


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts that only measures use."""

    alone: Callable[[PromptPair], Sequence[int]]  # shows the demonstration without the question
    shown: Callable[[PromptPair, str], Sequence[int]]  # the question with a text in the demonstration's place


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the rules, as given or as the probe found them. None: that rule refuses nothing."""

    max_surprise: float | None = None
    max_leak: float | None = None
    min_support: float | None = None


class BarePromptReview:
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
        trusts_records: Whether the weights that write are the policy's: what they recorded need not be scored again.
        gather: Returns every rank's value on every rank; all ranks call the review together.
        num_workers: Checks run at once.
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
        trusts_records: bool = True,
        gather: Callable[[_Named], list[_Named]] = lambda value: [value],
        num_workers: int = 0,
    ) -> None:
        self.trusts_records = trusts_records
        self.gather = gather
        self.num_workers = num_workers
        self.config = config
        self.task = task
        self.check = Checker(task, config.max_check_errors)
        self.decode = decode
        self.score = score
        self.sample = sample
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.given = Limits(config.max_surprise, config.max_leak, config.min_support)
        self.limits = self.given
        self.verdicts: dict[str, Verdict] = {reason: getattr(config, reason) for reason in REVIEW_RULES}

    def __call__(self, targets: Sequence[Target], step: int) -> list[Target]:
        """Return the targets with their measures, and with the verdicts that follow from these."""
        return self.rule(self.measure(targets, step))

    def measure(self, targets: Sequence[Target], step: int) -> list[Target]:
        """Return the targets with their measures."""
        measured = self._count_agreement(self._score(targets))
        return self._ask_bare(self._test_steps(measured, step), step)

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
            "agreement": _above(self.config.min_agreement, measures.agreement),
            "solved": _above(measures.solved_rate, self.config.max_solved_rate),
        }
        return next((name for name in REVIEW_RULES if self.verdicts[name] != "keep" and holds[name]), "")

    def _judge(self, target: Target) -> Target:
        if target.rollout is None or target.verdict not in ("keep", "fallback"):
            return target
        reason = self.reason(target)
        if reason and (target.verdict == "keep" or reason == "solved"):  # a row that is solved needs no demonstration
            return refused(target, self.verdicts[reason], reason)
        rate = target.measures.solved_rate if target.measures else None
        return replace(target, weight=1.0 - rate) if rate is not None and self.config.weigh_by_failure else target

    def _score(self, targets: Sequence[Target]) -> list[Target]:
        """Score every rollout behind the bare prompt and behind the demonstration alone, in one call."""
        config = self.config
        written = [target for target in targets if target.rollout is not None] if self._measures_any() else []
        with_leak = config.measure or self.verdicts["leak"] != "keep"
        judged = [target for target in written if self._is_judged(target)]
        texts: list[Text] = [(t.pair.student_ids, _ids(t)) for t in written if self._known(t) is None]
        texts += [(self.prompts.alone(t.pair), _ids(t)) for t in written] if with_leak else []
        shown = self._support_texts(judged)
        texts += [text for each in shown for text in each]
        scores = iter(self.score(texts) if texts else ())
        bare = [next(scores) if known is None else known for known in map(self._known, written)]
        alone = [next(scores) for _ in written] if with_leak else [None] * len(written)
        found = {id(target): _measures(own, other) for target, own, other in zip(written, bare, alone, strict=True)}
        for target, each in zip(judged, shown, strict=True):
            own, *others = (_mean(next(scores)) for _ in each)
            support, spread = own - fmean(others), pstdev(others) if len(others) > 1 else None
            found[id(target)] = replace(found[id(target)], support=support, support_spread=spread)
        return [replace(target, measures=found.get(id(target))) for target in targets]

    def _known(self, target: Target) -> Sequence[float] | None:
        """Return a rollout's log-probabilities under the bare prompt, where the policy recorded them as it wrote."""
        rollout = target.rollout
        if rollout is None or not self.trusts_records:
            return None
        if rollout.prompt_token_ids == target.pair.student_ids:
            return rollout.logprobs
        return rollout.bare_logprobs or None

    def _measures_any(self) -> bool:
        config = self.config
        has_rule = any(verdict != "keep" for verdict in self.verdicts.values())
        return config.measure or config.pick == "best" or config.bare_samples > 0 or has_rule

    def _is_judged(self, target: Target) -> bool:
        """Whether its own rewrite has to stand in for a check."""
        has_rule = target.verdict == "keep" and self.verdicts["support"] != "keep"
        return has_rule and not self._has_check(target) and bool(target.pair.demonstration.response)

    def _support_texts(self, judged: Sequence[Target]) -> list[list[Text]]:
        """Return each demonstration behind its own rewrite, and behind those of the next few rows of the step.

        The rows are those of all ranks, by name, so that nothing depends on how they were dealt out. A row that is
        alone in its step is compared with its bare prompt.
        """
        if self.verdicts["support"] == "keep":
            return []
        own = [(t.pair.demonstration.example_id, t.pair.sample_index, t.text) for t in judged]
        rewrites = sorted({each for part in self.gather(own) for each in part})
        found: list[list[Text]] = []
        for target, key in zip(judged, own, strict=True):
            pair, place = target.pair, rewrites.index(key)
            others = [text for name, _, text in (*rewrites[place + 1 :], *rewrites[:place]) if name != key[0]]
            controls = [self.prompts.shown(pair, other) for other in others[:_NUM_CONTROLS]] or [pair.student_ids]
            prompts = (self.prompts.shown(pair, target.text), *controls)
            found.append([(prompt, pair.response_ids) for prompt in prompts])
        return found

    def _count_agreement(self, targets: Sequence[Target]) -> list[Target]:
        """Count how many rollouts of a presentation of a demonstration the check accepts: all are on one rank."""
        if self.verdicts["agreement"] == "keep":
            return list(targets)
        written = self._checkable(targets)
        rates = _rates((target.pair.presented for target in written), (bool(target.correct) for target in written))
        return [_with(target, agreement=rates.get(target.pair.presented)) for target in targets]

    def _checkable(self, targets: Sequence[Target]) -> list[Target]:
        """Return those whose rollouts the check can judge."""
        return [target for target in targets if target.rollout is not None and self._has_check(target)]

    def _has_check(self, target: Target) -> bool:
        return has_check(self.task, target.pair.demonstration)

    def _check(self, targets: Sequence[Target], texts: Sequence[str]) -> list[bool]:
        """Check texts as answers to the prompts of targets."""
        demonstrations = [target.pair.demonstration for target in targets]
        return [result.correct for result in self.check.all(texts, demonstrations, self.num_workers)]

    def _test_steps(self, targets: Sequence[Target], step: int) -> list[Target]:
        """Let the bare policy go on from the first half of each kept rollout, and check where it ends."""
        if self.verdicts["steps"] == "keep":
            return list(targets)
        kept = [t for t in targets if t.verdict == "keep" and len(_ids(t)) > 1 and self._has_check(t)]
        halves = {id(target): _ids(target)[: len(_ids(target)) // 2] for target in kept}
        asked = [(target, sample) for target in kept for sample in range(self.config.step_samples)]
        written = self.sample(
            [
                self._request(target, step, NoiseKey.SECOND_HALF + sample, halves[id(target)], self.config.step_samples)
                for target, sample in asked
            ],
            step,
        )
        pairs = zip(asked, written, strict=True)
        texts = [self.decode((*halves[id(target)], *rollout.token_ids)) for (target, _), rollout in pairs]
        rates = _rates((id(target) for target, _ in asked), self._check([target for target, _ in asked], texts))
        return [_with(target, step_rate=rates.get(id(target))) for target in targets]

    def _ask_bare(self, targets: Sequence[Target], step: int) -> list[Target]:
        """Let the bare policy answer each prompt itself, once for all samples of a presentation of a demonstration."""
        if not self.config.bare_samples:
            return list(targets)
        written = self._checkable(targets)
        first = {target.pair.presented: target for target in reversed(written)}
        asked = [(target, sample) for target in first.values() for sample in range(self.config.bare_samples)]
        count = self.config.bare_samples
        requests = [self._request(target, step, NoiseKey.BARE_ANSWER + sample, (), count) for target, sample in asked]
        answers = self.sample(requests, step)
        texts = [self.decode(rollout.token_ids) for rollout in answers]
        rights = self._check([target for target, _ in asked], texts)
        rates = _rates((target.pair.presented for target, _ in asked), rights)
        return [_with(target, solved_rate=rates.get(target.pair.presented)) for target in targets]

    def _request(
        self, target: Target, step: int, attempt: int, begun: Sequence[int], num_samples: int
    ) -> RolloutRequest:
        pair = target.pair
        # Samples of one demonstration have each their own noise here too.
        key = NoiseKey(
            self.seed, step, pair.demonstration.example_id, pair.sample_index, attempt + num_samples * target.attempt
        )
        return RolloutRequest((*pair.student_ids, *begun), key, max(1, self.max_new_tokens - len(begun)))


def _measures(bare: Sequence[float], alone: Sequence[float] | None) -> Measures:
    leak = None if alone is None else _mean(alone) - _mean(bare)
    return Measures(surprise=-_mean(bare), surprise_max=-min(bare), leak=leak)


def _with(target: Target, **rates: float | None) -> Target:
    """Add rates that are known to a target's measures, which whatever was written has."""
    known = {name: rate for name, rate in rates.items() if rate is not None}
    return replace(target, measures=replace(target.measures, **known)) if known and target.measures else target


def _ids(target: Target) -> tuple[int, ...]:
    return () if target.rollout is None else target.rollout.token_ids


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rates(keys: Iterable[_Key], rights: Iterable[bool]) -> dict[_Key, float]:
    """Return the share of right ones among those of each key."""
    found: dict[_Key, list[bool]] = {}
    for key, right in zip(keys, rights, strict=True):
        found.setdefault(key, []).append(right)
    return {key: fmean(each) for key, each in found.items()}


def _above(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value > bound
