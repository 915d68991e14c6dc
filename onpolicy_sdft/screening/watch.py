"""Judging beside the rollout: each text as it ends, so that a step waits for the last verdicts only.

What is asked again, and in which order, follows from the order in which texts ended, never from which verdict was there
first: a run can be repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from onpolicy_sdft.types import PromptPair, Rollout, Target

#: Draws again for these examples: ``resample(pairs, attempt)``.
Resample = Callable[[Sequence[PromptPair], int], Sequence[Rollout | None]]

#: Judges one draw: ``judge(pair, rollout, attempt)``.
Judge = Callable[[PromptPair, Rollout | None, int], Target]


class Watch:
    """Follows the draws of a step's examples, and judges each as it ends.

    Args:
        judge: Gives the verdict of one draw.
        pairs: The examples; the first draws asked for are theirs, in order.
        max_attempts: Draws of one example; 1 where no verdict asks for another.
        num_workers: Verdicts reached at once; 0 judges in the thread that writes.
    """

    def __init__(self, judge: Judge, pairs: Sequence[PromptPair], max_attempts: int, num_workers: int) -> None:
        self._judge = judge
        self._pairs = pairs
        self._max_attempts = max_attempts
        self._workers = ThreadPoolExecutor(num_workers, "screen") if num_workers else None
        self._draws = [(example, 0) for example in range(len(pairs))]  # example and attempt of each draw asked for
        self._verdicts: dict[int, Future[Target]] = {}  # by draw
        self._order: list[int] = []  # draws in the order in which they ended
        self._num_looked_at = 0  # of those
        self._seconds: list[float] = []  # of each verdict that was reached
        self._seconds_beside = 0.0  # of those that were there when all was written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._workers is not None:
            # After an error nobody waits for a check, which may take its time.
            self._workers.shutdown(wait=error is None, cancel_futures=True)

    def ended(self, draw: int, rollout: Rollout) -> None:
        """Start to judge a draw."""
        self._order.append(draw)
        self._begin(draw, rollout)

    def again(self, num_ended: int) -> list[tuple[PromptPair, int]]:
        """Wait for verdicts on the first so many draws that ended; return what to draw again, and its attempt."""
        if self._max_attempts == 1:
            return []
        found = []
        for draw in self._order[self._num_looked_at : num_ended]:
            example, attempt = self._draws[draw]
            if attempt + 1 < self._max_attempts and self._verdicts[draw].result().verdict == "resample":
                self._draws.append((example, attempt + 1))
                found.append((self._pairs[example], attempt + 1))
        self._num_looked_at = max(self._num_looked_at, num_ended)
        return found

    def targets(self, rollouts: Sequence[Rollout | None], resample: Resample) -> list[Target]:
        """Return the last verdict on each example, in order.

        Args:
            rollouts: The first draw of each example; those that were not heard of are judged now.
            resample: Draws again what was refused since.
        """
        self._seconds_beside = sum(self._seconds)
        for draw, (_, rollout) in enumerate(zip(self._pairs, rollouts, strict=True)):
            if draw not in self._verdicts:
                self._begin(draw, rollout)
        last = {example: draw for draw, (example, _) in enumerate(self._draws)}
        targets = [self._verdicts[last[example]].result() for example in range(len(self._pairs))]
        for attempt in range(1, self._max_attempts):
            again = [
                example
                for example, target in enumerate(targets)
                if target.verdict == "resample" and target.attempt + 1 == attempt
            ]
            if not again:
                continue
            first = len(self._draws)
            self._draws += [(example, attempt) for example in again]
            drawn = resample([self._pairs[example] for example in again], attempt)
            for draw, rollout in enumerate(drawn, first):
                self._begin(draw, rollout)
            for draw, example in enumerate(again, first):
                targets[example] = self._verdicts[draw].result()
        return targets

    def figures(self) -> Mapping[str, float]:
        """Return how long judging took, all verdicts together, and how much of it was beside the rollout."""
        return {
            "time/judging_seconds": sum(self._seconds),
            "time/judging_beside_seconds": self._seconds_beside,
        }

    def _begin(self, draw: int, rollout: Rollout | None) -> None:
        example, attempt = self._draws[draw]
        pair = self._pairs[example]

        def judge() -> Target:
            started = time.perf_counter()
            target = self._judge(pair, rollout, attempt)
            self._seconds.append(time.perf_counter() - started)
            return target

        if self._workers is not None and rollout is not None:
            self._verdicts[draw] = self._workers.submit(judge)
        else:
            self._verdicts[draw] = verdict = Future[Target]()
            verdict.set_result(judge())
