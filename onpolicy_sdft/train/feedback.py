"""A teacher that sees how the student's own attempt went.

Before a step's rollouts the student tries each prompt as it will be asked: the bare prompt, its own weights, noise of
its own. The teacher's prompt then goes on with that attempt, what the task's check says of it, and another attempt that
is right if there is one. What it writes is learned (``rollout.prompt teacher``), or its distribution at the attempt
itself (``rollout.prompt student``: the attempt is the rollout, and is not drawn twice). A right attempt needs no
teacher.

Source: SDPO (arXiv:2601.20802) learns the distribution of such a teacher at the attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from onpolicy_sdft.data.teacher_prompts import Fitted
from onpolicy_sdft.train.source import PolicySource, Watching
from onpolicy_sdft.types import (
    CheckResult,
    Demonstration,
    Feedback,
    NoiseKey,
    PromptPair,
    Rollout,
    RolloutRequest,
    Target,
)

SOLVED, NO_ROOM = "solved", "no_room"


class Prompting(Protocol):
    """Makes the teacher's prompt that tells of an attempt."""

    def __call__(self, demonstration: Demonstration, feedback: Feedback) -> Fitted | None:
        """Return it; None where it cannot be made to fit."""
        ...


@dataclass(frozen=True, slots=True)
class AttemptOptions:
    """How the student's attempts are made and judged."""

    num_samples: int  # rollouts of each demonstration and step
    num_attempts: int  # attempts at each; as many as samples where the attempts are the rollouts
    check: Callable[[Sequence[str], Sequence[Demonstration]], Sequence[CheckResult]]
    decode: Callable[[Sequence[int]], str]
    prompt: Prompting
    writing: Callable[[], AbstractContextManager[None]]  # puts the student's weights in place
    solved: Literal["drop", "learn"] = "drop"  # what becomes of an attempt that is right
    reveal: bool = False  # tell what is right as well


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt and its verdict."""

    rollout: Rollout
    text: str
    result: CheckResult

    @property
    def is_right(self) -> bool:
        """Whether it is a whole answer that passes the check."""
        return self.result.correct and self.rollout.finish_reason == "stop"


class FeedbackSource(PolicySource):
    """Rollouts of a teacher that is told of the student's attempt.

    Args:
        others: As of :class:`PolicySource`; the student is asked under the same distribution, the store is of attempts.
        options: How the student tries.
        named: As ``others``.
    """

    def __init__(self, *others: Any, options: AttemptOptions, **named: Any) -> None:
        super().__init__(*others, **named)
        self.options = options
        self._figures: dict[str, float] = {}

    def begin(self, pairs: Sequence[PromptPair], step: int) -> list[PromptPair]:
        """Let the student try; return the examples with what the teacher is told of it.

        All attempts at a demonstration are made where its samples are: what is told does not depend on other ranks.
        """
        started, pairs = time.perf_counter(), super().begin(pairs, step)
        keys = [self._keys(pair, step) for pair in pairs]
        asked = {key: pair for pair, its in zip(pairs, keys, strict=True) for key in its}
        attempts = self._try(asked, step)
        told = [
            self._tell(pair, [attempts[key] for key in its], pair.sample_index % self.options.num_samples)
            for pair, its in zip(pairs, keys, strict=True)
        ]
        self._figures = {**_figures(told), "time/attempt_seconds": time.perf_counter() - started}
        return [pair for pair, _ in told]

    def rollouts(
        self, pairs: Sequence[PromptPair], *, step: int, attempt: int = 0, watch: Watching | None = None
    ) -> Sequence[Rollout | None]:
        """Write what no attempt stands for; where one does, return it."""
        found: list[Rollout | None] = [
            pair.feedback.rollout if attempt == 0 and pair.feedback is not None and pair.feedback.stands else None
            for pair in pairs
        ]
        places = [place for place, rollout in enumerate(found) if rollout is None]
        if places:
            placed = None if watch is None else _Placed(watch, places, len(pairs))
            written = super().rollouts([pairs[p] for p in places], step=step, attempt=attempt, watch=placed)
            for place, rollout in zip(places, written, strict=True):
                found[place] = rollout
        return found

    def remember(self, targets: Sequence[Target]) -> None:
        """Keep the attempts as drafts of the next ones; a prompt that tells of an attempt does not come again."""
        for target in targets:
            if target.pair.feedback is not None:
                tried = target.pair.feedback.rollout
                self.store.put(target.pair.demonstration.example_id, tried.prompt_token_ids, tried.token_ids)

    def figures(self) -> Mapping[str, float]:
        """Return those of the step's rollouts, and how the attempts went."""
        return {**super().figures(), **self._figures}

    def _keys(self, pair: PromptPair, step: int) -> list[NoiseKey]:
        """Return the keys of the attempts at an example; each of its presentations in a step has a set."""
        number, seed, name = self.options.num_attempts, self.sampling.seed, pair.demonstration.example_id
        first = pair.presentation * number
        before = 0 if self.sampling.prompt == "student" else NoiseKey.FIRST_TRY  # the attempts are the rollouts there
        return [NoiseKey(seed, step, name, first + index, before) for index in range(number)]

    def _try(self, asked: Mapping[NoiseKey, PromptPair], step: int) -> dict[NoiseKey, _Attempt]:
        options = self.options
        requests = [self._request_behind(pair, key, pair.student_ids) for key, pair in asked.items()]
        with options.writing():
            rollouts = self._generate(requests, step, self.on_progress)
        texts = [options.decode(rollout.token_ids) for rollout in rollouts]
        results = options.check(texts, [pair.demonstration for pair in asked.values()])
        return dict(zip(asked, map(_Attempt, rollouts, texts, results), strict=True))

    def _request(self, example: PromptPair, key: NoiseKey) -> RolloutRequest:
        """Draft from the attempt: there is no earlier rollout under a prompt that tells of it."""
        request = super()._request(example, key)
        if example.feedback is None:
            return request
        tried = example.feedback.rollout.token_ids
        drafts = zip(self.sampling.drafts, request.draft_token_ids, strict=True)
        return replace(
            request,
            draft_token_ids=tuple(tried if name == "history" else text for name, text in drafts),
            expected_new_tokens=len(tried),
        )

    def _tell(self, pair: PromptPair, attempts: Sequence[_Attempt], sample: int) -> tuple[PromptPair, int]:
        """Return an example as the teacher is told of one of the attempts at it, and how much of that was cut."""
        own, is_rollout = attempts[sample % len(attempts)], self.sampling.prompt == "student"
        if own.is_right:
            drop = SOLVED if self.options.solved == "drop" else ""
            feedback = Feedback(own.rollout, own.text, "", stands=True, drop=drop, result=own.result)
            return replace(pair, feedback=feedback), 0
        sibling = next((attempt.text for attempt in attempts if attempt.is_right), "")
        feedback = Feedback(own.rollout, own.text, self._message(own), sibling, stands=is_rollout, result=own.result)
        fitted = self.options.prompt(pair.demonstration, feedback)
        if fitted is None:
            return replace(pair, feedback=replace(feedback, stands=True, drop=NO_ROOM)), 0
        told = replace(
            pair,
            teacher_ids=fitted.token_ids,
            num_trimmed_tokens=fitted.num_trimmed_tokens,
            num_dropped_examples=fitted.num_dropped_examples,
            feedback=feedback,
        )
        return told, fitted.num_cut_tokens

    def _message(self, attempt: _Attempt) -> str:
        result, lines = attempt.result, []
        if not result.correct:
            reason = result.reason.replace("_", " ") or "wrong"
            lines.append(result.message or f"The check says: {reason}.")
        if attempt.rollout.finish_reason == "length":
            lines.append(f"It was cut off after {len(attempt.rollout.token_ids)} tokens, before it came to an end.")
        if self.options.reveal and result.expected:
            lines.append(f"What is right: {result.expected}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Placed:
    """Tells a watch of what is written in the places it knows, though some of them are taken already."""

    watch: Watching
    places: Sequence[int]
    num_places: int

    def ended(self, draw: int, rollout: Rollout) -> None:
        """Hear of a rollout."""
        own = len(self.places)
        self.watch.ended(self.places[draw] if draw < own else draw - own + self.num_places, rollout)

    def again(self, num_ended: int) -> Sequence[tuple[PromptPair, int]]:
        """Return what to draw again."""
        return self.watch.again(num_ended)


def _figures(told: Sequence[tuple[PromptPair, int]]) -> dict[str, float]:
    """Return how the attempts of this rank's samples went, of which each is told with what was cut of it."""
    feedback = [pair.feedback for pair, _ in told if pair.feedback is not None]
    counts = {
        "solved_rate": sum(not each.message for each in feedback),
        "sibling_rate": sum(bool(each.sibling) for each in feedback),
        "no_room_rate": sum(each.drop == NO_ROOM for each in feedback),
        "cut_rate": sum(num_cut > 0 for _, num_cut in told),
        "attempt_length": sum(len(each.rollout.token_ids) for each in feedback),
    }
    return {f"feedback/{name}": count / len(told) for name, count in counts.items()} if told else {}
