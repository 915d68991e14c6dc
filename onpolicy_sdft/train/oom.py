"""Do a part of a step again with less memory, on every rank, where memory ran out on one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from onpolicy_sdft.errors import TrainingError
from onpolicy_sdft.train.backend import OutOfMemoryOnAnyRank
from onpolicy_sdft.types import Target

if TYPE_CHECKING:
    from onpolicy_sdft.models.weights import PolicyWeights
    from onpolicy_sdft.screening.review import BarePromptReview
    from onpolicy_sdft.train.backend import Backend
    from onpolicy_sdft.train.pairing import Pairing
    from onpolicy_sdft.train.source import TargetSource
    from onpolicy_sdft.train.state import TrainState

T = TypeVar("T")

#: Micro-batches of scoring are not halved below so many tokens: one text may be longer.
_FEWEST_TOKENS = 64


@dataclass(frozen=True, slots=True)
class OomRetry:
    """First gives back what rollouts keep, then halves the micro-batches."""

    backend: Backend
    source: TargetSource
    pairing: Pairing
    weights: PolicyWeights
    state: TrainState

    def learn(self, learn: Callable[[Sequence[Target]], T], targets: Sequence[Target]) -> T:
        """Learn targets, in smaller micro-batches where memory runs out.

        Raises:
            TrainingError: If a micro-batch of one target is too large, or what was begun cannot be undone.
        """
        return self._retry(lambda: learn(targets), lambda: self._split(targets))

    def review(self, review: BarePromptReview, targets: Sequence[Target], step: int) -> list[Target]:
        """Review targets under the policy's own weights, in smaller forwards where memory runs out.

        Raises:
            TrainingError: If the smallest forward is too large.
        """

        def score() -> list[Target]:
            with self.backend.oom_on_all_ranks(), self.weights.showing("live"):
                return review(targets, step)

        return self._retry(score, self._halve)

    def _retry(self, work: Callable[[], T], halve: Callable[[], bool]) -> T:
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                raise self._out_of_memory(str(error)) from error
            except OutOfMemoryOnAnyRank as error:
                said = str(error)  # not the error: its frames keep what was broken off
            self.backend.discard_gradients()
            if self.backend.max_over_ranks(int(self.source.release())):
                self.state.num_releases += 1
            elif not halve():
                raise self._out_of_memory(said)

    def _halve(self) -> bool:
        if self.pairing.micro_batch_tokens >> self.state.num_halvings <= _FEWEST_TOKENS:
            return False
        self.state.num_halvings += 1
        return True

    def _split(self, targets: Sequence[Target]) -> bool:
        """Halve micro-batches until a rank has more of them; return whether one could."""
        before = groups = self.pairing.groups(targets, self.state.num_halvings)
        if self.backend.max_over_ranks(max(map(len, groups), default=1)) == 1:
            return False
        while not self.backend.max_over_ranks(int(len(groups) > len(before))):
            self.state.num_halvings += 1
            groups = self.pairing.groups(targets, self.state.num_halvings)
        return True

    def _out_of_memory(self, said: str) -> TrainingError:
        budget = self.pairing.micro_batch_tokens >> self.state.num_halvings
        return TrainingError(
            f"Out of memory while scoring or learning {budget} tokens at once (rank {self.backend.rank}): {said}. "
            "Fix: a lower train.micro_batch_tokens or rollout.kv_fraction, model.gradient_checkpointing, or a "
            "backend that divides more (launch/accelerate)."
        )
