from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from test_screen import SaysYes, decode, make_pair, rollout

from onpolicy_sdft.config.schema import ScreeningConfig
from onpolicy_sdft.errors import TaskError
from onpolicy_sdft.screening.screen import Screen, num_free_cores
from onpolicy_sdft.types import CheckResult, Demonstration, PromptPair

TEXTS = ("yes, sir", "no, sir", "  ", "yes, well, " * 5, "no, as my own response", "yes" + "123 " * 90)


class TakesItsTime(SaysYes):
    """Checks in threads, each of which takes another time."""

    check_is_quick = False

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.threads: set[str] = set()

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        self.threads.add(threading.current_thread().name)
        time.sleep(self.random.random() * 0.004)
        return super().check(completion, demonstration)


def text_of(pair: PromptPair, attempt: int) -> str:
    """What is written for an example: a function of its name and attempt, as with keyed noise."""
    return random.Random(f"{pair.demonstration.example_id} {attempt}").choice(TEXTS)


def draw(shown: Sequence[PromptPair], attempt: int) -> list[Any]:
    return [rollout(text_of(pair, attempt), attempt=attempt) for pair in shown]


def write(watch: Any, shown: Sequence[PromptPair], order: random.Random, lag: int) -> tuple[list[Any], list[Any]]:
    """Write in some order, and ask for more whenever ``lag`` further texts have ended; return what joined as well."""
    draws: list[tuple[PromptPair, int]] = [(pair, 0) for pair in shown]
    waiting, joined, written = list(range(len(draws))), [], {}
    num_ended = 0
    while waiting or (more := watch.again(num_ended)):
        if not waiting:
            waiting += range(len(draws), len(draws) + len(more))
            draws += more
            joined += more
        index = waiting.pop(order.randrange(len(waiting)))
        pair, attempt = draws[index]
        written[index] = rollout(text_of(pair, attempt), attempt=attempt)
        watch.ended(index, written[index])
        num_ended += 1
        more = watch.again(max(0, num_ended - lag))
        waiting += range(len(draws), len(draws) + len(more))
        draws += more
        joined += more
    return [written[index] for index in range(len(shown))], joined


@pytest.mark.parametrize("seed", range(12))
def test_judging_beside_the_rollout_gives_the_targets_of_judging_after_it(seed: int) -> None:
    pick = random.Random(seed)
    verdicts = {reason: pick.choice(["keep", "fallback", "drop", "resample"]) for reason in ("empty", "looping")}
    config = ScreeningConfig(check="resample", max_attempts=pick.choice([1, 2, 4]), **verdicts)  # type: ignore[arg-type]
    shown = [make_pair(f"id-{i}") for i in range(12)]
    expected = Screen(config, SaysYes(), decode)(shown, draw(shown, 0), draw)
    task = TakesItsTime(seed)
    joined = []
    for num_workers in (1, 3):
        screen = Screen(config, task, decode, num_workers)
        with screen.watch(shown) as watch:
            rollouts, more = write(watch, shown, random.Random(seed), lag=3)
            targets = watch.targets(rollouts, draw)
        assert targets == expected
        joined.append([(pair.demonstration.example_id, attempt) for pair, attempt in more])
    assert joined[0] == joined[1], "what joins, and when, does not depend on the workers"
    assert all(name.startswith("screen") for name in task.threads)


def test_what_is_refused_joins_while_others_are_written_and_is_not_drawn_again_after() -> None:
    shown = [make_pair("a"), make_pair("b")]
    screen = Screen(ScreeningConfig(check="resample", max_attempts=2), TakesItsTime(0), decode, 2)
    with screen.watch(shown) as watch:
        watch.ended(1, rollout("no, sir"))
        assert watch.again(0) == []
        assert watch.again(1) == [(shown[1], 1)]
        assert watch.again(1) == []
        watch.ended(2, rollout("yes, sir", attempt=1))
        watch.ended(0, rollout("yes, sir"))
        never: Any = None
        targets = watch.targets([rollout("yes, sir"), rollout("no, sir")], never)
    assert [(target.verdict, target.attempt) for target in targets] == [("keep", 0), ("keep", 1)]
    figures = watch.figures()
    assert figures["time/judging_seconds"] >= figures["time/judging_beside_seconds"] >= 0


def test_without_a_rule_that_resamples_no_verdict_is_waited_for() -> None:
    screen = Screen(ScreeningConfig(), TakesItsTime(0), decode, 1)
    with screen.watch([make_pair()]) as watch:
        assert watch.again(1) == []


def test_a_check_that_cannot_run_ends_the_step_with_its_own_message() -> None:
    class Broken(TakesItsTime):
        def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
            raise TaskError("the check cannot run")

    screen = Screen(ScreeningConfig(), Broken(0), decode, 1)

    def step():
        with screen.watch([make_pair()]) as watch:
            watch.ended(0, rollout("yes, sir"))
            watch.targets([rollout("yes, sir")], draw)

    with pytest.raises(TaskError, match="the check cannot run"):
        step()


def test_an_interrupted_step_does_not_wait_for_the_checks_that_have_not_begun() -> None:
    class Slow(TakesItsTime):
        def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
            time.sleep(0.5)
            return CheckResult(True, "")

    started = time.monotonic()
    shown = [make_pair(str(i)) for i in range(20)]

    def step():
        with Screen(ScreeningConfig(), Slow(0), decode, 1).watch(shown) as watch:
            for index in range(20):
                watch.ended(index, rollout("yes, sir"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step()
    assert time.monotonic() - started < 0.5


def test_a_quick_check_is_run_at_once_in_the_thread_that_writes() -> None:
    task = TakesItsTime(0)
    task.check_is_quick = True
    with Screen(ScreeningConfig(), task, decode, 3).watch([make_pair()]) as watch:
        watch.ended(0, rollout("yes, sir"))
    assert task.threads == {threading.current_thread().name}


def test_a_rank_has_its_share_of_the_cores_less_one() -> None:
    assert num_free_cores(10**6) == 1
    assert num_free_cores() >= 1
