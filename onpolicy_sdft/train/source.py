"""Where targets come from: the policy's own rollouts, or the demonstrations themselves."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from onpolicy_sdft.rollout.backend import (
    NO_LISTENER,
    NO_RECORD,
    Listener,
    OnProgress,
    RolloutBackend,
    RolloutStats,
    ignore_progress,
)
from onpolicy_sdft.rollout.drafts import DraftStore
from onpolicy_sdft.types import (
    Blend,
    NoiseKey,
    PromptPair,
    RecordOptions,
    Rollout,
    RolloutRequest,
    SamplingParams,
    Target,
)


class Watching(Protocol):
    """Follows the rollouts of a step while they are written; see ``screening/watch.py``."""

    def ended(self, draw: int, rollout: Rollout) -> None:
        """Hear of a rollout; those drawn again are counted on from the examples."""
        ...

    def again(self, num_ended: int) -> Sequence[tuple[PromptPair, int]]:
        """Return what to draw again of the first so many that ended, with the number of its attempt."""
        ...


class TargetSource:
    """Gives each example of a step a rollout, or None where the demonstration is the target.

    This one writes nothing, as plain fine-tuning asks for.
    """

    def rollouts(
        self, pairs: Sequence[PromptPair], *, step: int, attempt: int = 0, watch: Watching | None = None
    ) -> Sequence[Rollout | None]:
        """Return one entry per example, in order; what a watch has drawn again it hears of, and is not returned."""
        return [None] * len(pairs)

    def begin(self, pairs: Sequence[PromptPair], step: int) -> list[PromptPair]:
        """Return this rank's examples of a step as they are to be asked, before any is; every rank calls it once."""
        return list(pairs)

    def open(self) -> AbstractContextManager[None]:
        """Put the weights that write in place; every rank enters and leaves together, however many rollouts it asks."""
        return nullcontext()

    def remember(self, targets: Sequence[Target]) -> None:
        """Keep what a later step can use."""

    def release(self) -> bool:
        """Give memory back that is kept for the next rollouts; whether there was any."""
        return False

    def figures(self) -> Mapping[str, float]:
        """Return figures for the log, of all that was written since the step began."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: ``own`` of this rank, ``common`` the same on all."""
        return {"own": {}, "common": {}}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the policy is asked."""

    params: SamplingParams
    max_new_tokens: int
    seed: int
    prompt: Literal["teacher", "student"] = "teacher"  # the prompt with the demonstration, or the bare one
    demonstration_dropout: float = 0.0  # share of rollouts that are written under the bare prompt nevertheless
    temperature_end: float | None = None  # the temperature moves there linearly over the steps of the run
    min_p_end: float | None = None  # min_p does
    blend: float = 0.0  # weight of the bare prompt in what is sampled from
    blend_budget: float | None = None  # nats a token that may be away from the bare prompt; more weight where it is not
    num_steps: int = 1  # of the run
    record: RecordOptions = NO_RECORD
    drafts: tuple[str, ...] = ("history", "demonstration")

    def params_at(self, step: int) -> SamplingParams:
        """Return the sampling parameters of a step."""
        part = min(1.0, step / max(1, self.num_steps - 1))

        def moved(start: float, end: float | None) -> float:
            return start if end is None else start + part * (end - start)

        params = self.params
        return replace(
            params,
            temperature=moved(params.temperature, self.temperature_end),
            min_p=moved(params.min_p, self.min_p_end),
        )

    def prompt_of(self, pair: PromptPair, key: NoiseKey) -> tuple[int, ...]:
        """Return the prompt a rollout is written under: a function of its key, so that a resumed run repeats it."""
        name = f"demonstration dropout {key.seed} {key.step} {key.example_id} {key.sample_index} {key.attempt}"
        bare = self.prompt == "student" or random.Random(name).random() < self.demonstration_dropout
        return pair.student_ids if bare else pair.teacher_ids

    def blend_with(self, pair: PromptPair, prompt: tuple[int, ...]) -> Blend | None:
        """Return the bare prompt that a rollout is blended with, unless it is written under that alone."""
        if (self.blend == 0 and self.blend_budget is None) or prompt == pair.student_ids:
            return None
        return Blend(pair.student_ids, self.blend, self.blend_budget)


class PolicySource(TargetSource):
    """Rollouts of the current weights (or the teacher's), with the demonstration in context or without.

    Args:
        backend: Writes the completions.
        sampling: How it is asked.
        on_progress: Told how far the rollouts have come.
        store: Last rollouts, to draft from and to guess lengths by.
        writing: Gives the context in which the weights that write are in place.
    """

    def __init__(
        self,
        backend: RolloutBackend,
        sampling: Sampling,
        on_progress: OnProgress = ignore_progress,
        store: DraftStore | None = None,
        writing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.backend = backend
        self.sampling = sampling
        self.on_progress = on_progress
        self.store = DraftStore(0) if store is None else store
        self.writing = writing
        self.stats = RolloutStats()  # of the step so far

    def rollouts(
        self, pairs: Sequence[PromptPair], *, step: int, attempt: int = 0, watch: Watching | None = None
    ) -> Sequence[Rollout | None]:
        """Write one completion per entry, with the noise of its example and sample."""

        def request(pair: PromptPair, attempt: int) -> RolloutRequest:
            name = pair.demonstration.example_id
            return self._request(pair, NoiseKey(self.sampling.seed, step, name, pair.sample_index, attempt))

        requests = [request(pair, attempt) for pair in pairs]
        listener = NO_LISTENER if watch is None else _Listening(watch, request)
        return self._generate(requests, step, self.on_progress, self.sampling.record, listener)[: len(pairs)]

    def answers(self, requests: Sequence[RolloutRequest], step: int) -> Sequence[Rollout]:
        """Write completions of other prompts, with the sampling parameters of a step and the weights in place."""
        return self._generate(requests, step)

    def begin(self, pairs: Sequence[PromptPair], step: int) -> list[PromptPair]:
        """Return the examples as they are."""
        self.stats = RolloutStats()
        return list(pairs)

    def open(self) -> AbstractContextManager[None]:
        """Put the weights that write in place."""
        return self.writing()

    def remember(self, targets: Sequence[Target]) -> None:
        """Keep the rollouts as drafts for the next epoch."""
        for target in targets:
            if target.rollout is not None:
                name, prompt = target.pair.demonstration.example_id, target.rollout.prompt_token_ids
                self.store.put(name, prompt, target.rollout.token_ids)

    def release(self) -> bool:
        """Give the backend's memory back."""
        return self.backend.release()

    def figures(self) -> Mapping[str, float]:
        """Return how busy the slots were and how often drafts were kept."""
        return self.stats.figures()

    def state(self) -> dict[str, Any]:
        """Return the draft store and what the backend chose its shapes by."""
        return {"own": self.backend.state(), "common": self.store.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`; with ``own`` None shapes are chosen anew."""
        if state["own"] is not None:
            self.backend.restore(state["own"])
        self.store.restore(state["common"])

    def _generate(
        self,
        requests: Sequence[RolloutRequest],
        step: int,
        on_progress: OnProgress = ignore_progress,
        record: RecordOptions = NO_RECORD,
        listener: Listener = NO_LISTENER,
    ) -> list[Rollout]:
        """Call the backend with the sampling parameters of a step, and count the call."""
        written = self.backend.generate(requests, self.sampling.params_at(step), on_progress, record, listener)
        self.stats.add(self.backend.stats)
        return written

    def _request(self, example: PromptPair, key: NoiseKey) -> RolloutRequest:
        return self._request_behind(example, key, self.sampling.prompt_of(example, key))

    def _request_behind(self, example: PromptPair, key: NoiseKey, prompt: tuple[int, ...]) -> RolloutRequest:
        """Return the request of a completion of one of an example's prompts, with what it can be drafted from."""
        last = self.store.get(key.example_id, prompt)
        texts = {"history": last, "demonstration": example.response_ids}
        return RolloutRequest(
            prompt_token_ids=prompt,
            key=key,
            max_new_tokens=self.sampling.max_new_tokens,
            draft_token_ids=tuple(texts[name] for name in self.sampling.drafts),
            expected_new_tokens=len(last or example.response_ids),
            blend=self.sampling.blend_with(example, prompt),
        )


@dataclass(frozen=True, slots=True)
class _Listening(Listener):
    """Tells a watch of what is written, and words what it wants drawn again as requests."""

    watch: Watching
    request: Callable[[PromptPair, int], RolloutRequest]

    def ended(self, index: int, rollout: Rollout) -> None:
        self.watch.ended(index, rollout)

    def more(self, num_ended: int) -> Sequence[RolloutRequest]:
        return [self.request(pair, attempt) for pair, attempt in self.watch.again(num_ended)]
