"""Where targets come from: the policy's own rollouts, or the demonstrations themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from onpolicy_sdft.rollout.backend import OnProgress, RolloutBackend, ignore_progress
from onpolicy_sdft.rollout.sampling import SamplingLaw
from onpolicy_sdft.types import NoiseKey, Rollout, RolloutRequest, Views


class TargetSource(Protocol):
    """Gives each example of a step a rollout, or None where the demonstration is the target."""

    def rollouts(self, views: Sequence[Views], *, step: int, attempt: int = 0) -> Sequence[Rollout | None]:
        """Return one entry per example, in order."""
        ...


class PolicySource:
    """Rollouts of the current weights, with the demonstration in context.

    Args:
        backend: Writes the completions.
        law: The sampling law.
        max_new_tokens: Longest completion.
        seed: Part of every noise key.
        on_progress: Told of finished completions and of tokens as they are written.
    """

    def __init__(
        self,
        backend: RolloutBackend,
        law: SamplingLaw,
        max_new_tokens: int,
        seed: int,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        self.backend = backend
        self.law = law
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.on_progress = on_progress

    def rollouts(self, views: Sequence[Views], *, step: int, attempt: int = 0) -> Sequence[Rollout | None]:
        """Write one completion per example under the teacher's prompt."""
        seen: Counter[str] = Counter()  # an example that comes twice in a step must not repeat its noise
        requests = []
        for example in views:
            name = example.demonstration.example_id
            key = NoiseKey(self.seed, step, name, seen[name], attempt)
            seen[name] += 1
            requests.append(RolloutRequest(example.teacher_ids, key, self.max_new_tokens, (example.response_ids,)))
        return self.backend.generate(requests, self.law, self.on_progress)


class DemonstrationSource:
    """Plain fine-tuning: nothing is written, the demonstration is the target."""

    def rollouts(self, views: Sequence[Views], *, step: int, attempt: int = 0) -> Sequence[Rollout | None]:
        """Return None for every example."""
        return [None] * len(views)
