"""Where targets come from: the policy's own rollouts, or the demonstrations themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from onpolicy_sdft.rollout.backend import OnProgress, RolloutBackend, ignore_progress
from onpolicy_sdft.rollout.drafts import DraftStore
from onpolicy_sdft.types import NoiseKey, Rollout, RolloutRequest, SamplingLaw, Target, Views


class TargetSource(Protocol):
    """Gives each example of a step a rollout, or None where the demonstration is the target."""

    def rollouts(self, views: Sequence[Views], *, step: int, attempt: int = 0) -> Sequence[Rollout | None]:
        """Return one entry per example, in order."""
        ...

    def remember(self, targets: Sequence[Target]) -> None:
        """Keep what a later step can use."""
        ...

    def figures(self) -> Mapping[str, float]:
        """Return figures of the last rollouts for the log."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state`."""
        ...


class PolicySource:
    """Rollouts of the current weights, with the demonstration in context.

    Args:
        backend: Writes the completions.
        law: The sampling law.
        max_new_tokens: Longest completion.
        seed: Part of every noise key.
        on_progress: Told how far the rollouts have come.
        store: Last rollouts, to draft from and to guess lengths by.
        drafts: Texts to draft from: ``history``, ``demonstration``.
    """

    def __init__(
        self,
        backend: RolloutBackend,
        law: SamplingLaw,
        max_new_tokens: int,
        seed: int,
        on_progress: OnProgress = ignore_progress,
        store: DraftStore | None = None,
        drafts: Sequence[str] = ("history", "demonstration"),
    ) -> None:
        self.backend = backend
        self.law = law
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.on_progress = on_progress
        self.store = DraftStore(0) if store is None else store
        self.drafts = tuple(drafts)

    def rollouts(self, views: Sequence[Views], *, step: int, attempt: int = 0) -> Sequence[Rollout | None]:
        """Write one completion per example under the teacher's prompt."""
        seen: Counter[str] = Counter()  # an example that comes twice in a step must not repeat its noise
        requests = []
        for example in views:
            name = example.demonstration.example_id
            requests.append(self._request(example, NoiseKey(self.seed, step, name, seen[name], attempt)))
            seen[name] += 1
        return self.backend.generate(requests, self.law, self.on_progress)

    def remember(self, targets: Sequence[Target]) -> None:
        """Keep the rollouts as drafts for the next epoch."""
        for target in targets:
            if target.rollout is not None:
                name, prompt = target.views.demonstration.example_id, target.rollout.prompt_token_ids
                self.store.put(name, prompt, target.rollout.token_ids)

    def figures(self) -> Mapping[str, float]:
        """Return how busy the slots were and how often drafts were kept."""
        return self.backend.stats.figures()

    def state(self) -> dict[str, Any]:
        """Return the draft store and what the backend chose its shapes by."""
        return {"backend": self.backend.state(), "drafts": self.store.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state`."""
        self.backend.restore(state["backend"])
        self.store.restore(state["drafts"])

    def _request(self, example: Views, key: NoiseKey) -> RolloutRequest:
        last = self.store.get(key.example_id, example.teacher_ids)
        texts = {"history": last, "demonstration": example.response_ids}
        return RolloutRequest(
            prompt_token_ids=example.teacher_ids,
            key=key,
            max_new_tokens=self.max_new_tokens,
            draft_token_ids=tuple(texts[name] for name in self.drafts),
            expected_new_tokens=len(last or example.response_ids),
        )


class DemonstrationSource:
    """Plain fine-tuning: nothing is written, the demonstration is the target."""

    def rollouts(self, views: Sequence[Views], *, step: int, attempt: int = 0) -> Sequence[Rollout | None]:
        """Return None for every example."""
        return [None] * len(views)

    def remember(self, targets: Sequence[Target]) -> None:
        """Keep nothing."""

    def figures(self) -> Mapping[str, float]:
        """Return none."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up nothing."""
