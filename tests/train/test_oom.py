"""Memory that runs out on one of several ranks, with threads for ranks."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from onpolicy_sdft.errors import TrainingError
from onpolicy_sdft.train.backend import OutOfMemoryOnAnyRank
from onpolicy_sdft.train.oom import OomRetry
from onpolicy_sdft.train.pairing import Pairing
from onpolicy_sdft.train.state import TrainState
from onpolicy_sdft.types import Demonstration, PromptPair, Target, Turn


class Backend:
    """A rank of two that are threads of this process."""

    def __init__(self, rank: int, values: list[int], barrier: threading.Barrier) -> None:
        self.rank, self.values, self.barrier = rank, values, barrier

    def max_over_ranks(self, value: int) -> int:
        self.values[self.rank] = value
        self.barrier.wait()
        largest = max(self.values)
        self.barrier.wait()
        return largest

    def discard_gradients(self) -> None:
        pass


def target(num_tokens: int) -> Target:
    pair = PromptPair(Demonstration("a", (Turn("user", "q"),), "r"), (1,), (1,), (2,))
    return Target(pair, (5,) * (num_tokens - 1), "", "keep", "", None)


def learn_on_two(lengths: tuple[tuple[int, ...], ...], fits: Any) -> list[Any]:
    """Let each rank learn texts of its lengths; return its number of forwards, or its error."""
    values, barrier, found = [0, 0], threading.Barrier(2, timeout=10), [None, None]

    def work(rank: int) -> None:
        backend, targets = Backend(rank, values, barrier), [target(length) for length in lengths[rank]]
        pairing, state = Pairing(4096, 0), TrainState()
        source, weights = SimpleNamespace(release=lambda: False), SimpleNamespace()

        def learn(targets: Any) -> int:
            groups = pairing.groups(targets, state.num_halvings)
            if backend.max_over_ranks(int(not fits(rank, groups))):
                raise OutOfMemoryOnAnyRank("out of memory")
            return len(groups)

        try:
            found[rank] = OomRetry(backend, source, pairing, weights, state).learn(learn, targets)
        except TrainingError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_a_rank_whose_texts_stand_alone_already_does_not_halve_for_ever():
    found = learn_on_two(((3000, 2800), (900, 700)), lambda rank, groups: rank == 1)
    assert all("lower train.micro_batch_tokens" in said for said in found), found


@pytest.mark.parametrize("short", [0, 1])
def test_micro_batches_are_halved_until_the_rank_that_is_short_of_memory_can_learn(short):
    lengths = ((300, 280, 260, 240), (900, 700, 500))

    def fits(rank: int, groups: Any) -> bool:
        return rank != short or max(map(len, groups)) == 1

    found = learn_on_two(lengths, fits)
    assert found[short] == len(lengths[short])
