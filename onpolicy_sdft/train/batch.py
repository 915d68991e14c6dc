"""The demonstrations of one step, with their samples, sharded over the ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from onpolicy_sdft.data.sharing import shard_groups, unshard
from onpolicy_sdft.train.telemetry import without_records
from onpolicy_sdft.types import PromptPair, Ranks, Target


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What one step learns from, and which rank samples what.

    Args:
        pairs: One entry for each sample of each demonstration, the same on every rank.
        shares: Indices of each rank's entries.
        ranks: The processes that share them.
    """

    pairs: Sequence[PromptPair]
    shares: Sequence[Sequence[int]]
    ranks: Ranks

    @property
    def mine(self) -> list[PromptPair]:
        """This rank's entries; samples of one presentation of a demonstration are never on different ranks."""
        return [self.pairs[index] for index in self.shares[self.ranks.rank]]

    def gather(self, targets: Sequence[Target]) -> list[Target]:
        """Return the targets of all ranks, in the order of the batch and without what only learning needs."""
        return unshard(self.shares, self.ranks.gather(without_records(targets)))


def make_batch(pairs: Sequence[PromptPair], num_samples: int, ranks: Ranks) -> StepBatch:
    """Repeat a step's demonstrations for their samples and shard them by expected length."""
    repeated = repeat_samples(pairs, num_samples)
    sizes = [len(pair.teacher_ids or pair.student_ids) + len(pair.response_ids) for pair in repeated]
    return StepBatch(repeated, shard_groups(sizes, num_samples, ranks.num_ranks), ranks)


def repeat_samples(pairs: Sequence[PromptPair], num_samples: int) -> list[PromptPair]:
    """Repeat each example for its samples and number them: one that comes twice in a step must not repeat its noise."""
    seen: Counter[str] = Counter()
    found = []
    for pair in pairs:
        presentation = seen[pair.demonstration.example_id]
        seen[pair.demonstration.example_id] += 1
        first = presentation * num_samples
        found += [
            replace(pair, sample_index=first + sample, presentation=presentation) for sample in range(num_samples)
        ]
    return found
