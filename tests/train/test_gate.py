"""When the gate looks, what it lets pass, and what it remembers; without a model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from onpolicy_sdft.config.schema import GateConfig, OptimConfig
from onpolicy_sdft.train.gate import Answers, Gate, compare, worse_of
from onpolicy_sdft.train.optim import make_optimizer, make_schedule, scale_rates


def answers(num_right: int, n: int = 32, num_tokens: int = 3200) -> Answers:
    return Answers({"rows": (True,) * num_right + (False,) * (n - num_right)}, num_tokens)


def make(start: Answers | None = None, step_tokens: float = 2000.0, **options: object) -> Gate:
    gate = Gate(GateConfig(**options), step_tokens)
    gate.begin(start or answers(16))
    return gate


def test_rows_are_compared_with_themselves():
    drop = compare([1, 1, 1, 0, 0], [0, 1, 1, 1, 0])
    assert (drop.before, drop.after, drop.num_lost, drop.num_gained, drop.size) == (0.6, 0.6, 1, 1, 0.0)
    assert compare([1] * 5 + [0], [0] * 5 + [0]).p_value == pytest.approx(1 / 32)
    assert compare([1, 0.5], [1, 0.5]).p_value == 1.0
    assert drop.text() == "0.600 -> 0.600 (1 rows lost, 1 gained of 5, p = 0.75)"


def test_planned_checks_cost_no_more_than_their_share():
    assert make(step_tokens=2000).every == 16, "3200 tokens are a tenth of 16 steps"
    assert make(step_tokens=1e9).every == 1
    assert make(max_cost=0.05).every == 32
    assert make(every_steps=3).every == 3


def test_an_alarm_takes_the_place_of_the_next_planned_check_one_at_a_time():
    gate = make()
    assert gate.due(5, alarmed=False, ended=False) == ""
    assert gate.due(5, alarmed=True, ended=False) == "alarm"
    gate.judge(5, "alarm", answers(16))
    assert gate.due(5, alarmed=True, ended=False) == ""
    assert gate.due(9, alarmed=True, ended=False) == "", "that would be a second one in advance"
    assert gate.due(16, alarmed=False, ended=False) == "", "this one was taken by the alarm"
    assert gate.due(20, alarmed=True, ended=False) == "alarm"
    assert gate.due(32, alarmed=False, ended=False) == "planned"


def test_the_checks_of_a_long_run_cost_a_tenth_however_often_alarms_fire():
    gate = make()
    for step in range(1, 1001):
        if why := gate.due(step, alarmed=True, ended=False):
            gate.judge(step, why, answers(16))
    assert (len(gate.history) - 1) * 3200 <= 0.1 * 2000 * 1000 + 3200


def test_the_end_is_seen_once():
    gate = make()
    assert gate.due(7, alarmed=False, ended=True) == "end"
    gate.judge(7, "end", answers(16))
    assert gate.due(7, alarmed=False, ended=True) == ""


def test_a_drop_counts_that_is_large_and_no_accident():
    assert make(answers(8)).judge(1, "planned", answers(1))[0].passed is False
    assert make(answers(32)).judge(1, "planned", answers(29))[0].passed, "3 of 32 is no more than a tenth"
    few = make(answers(4, n=8)).judge(1, "planned", answers(1, n=8))[0]
    assert few.passed, "3 of 8 rows may be lost by chance"
    assert make(answers(0)).judge(1, "planned", answers(0))[0].passed


def test_one_set_that_drops_is_enough():
    gate = make(Answers({"rows": (False,) * 16, "known": (True,) * 16}, 3200))
    check, drops = gate.judge(1, "planned", Answers({"rows": (True,) * 16, "known": (False,) * 16}, 3200))
    assert not check.passed
    assert list(worse_of(drops, gate.config)) == ["known"]


def test_the_best_state_is_the_best_that_passed_and_of_equals_the_later():
    gate = make()
    for step, right in ((1, 18), (2, 18), (3, 17), (4, 2)):
        gate.judge(step, "planned", answers(right))
    assert gate.best_step == 2
    assert gate.pinned == {2}
    assert make(action="continue").pinned == set()


def test_going_back_ends_in_a_stop_after_so_many_times_or_at_the_end():
    gate = make(action="rollback", max_rollbacks=1)
    assert gate.judge(1, "planned", answers(0))[0].action == "rollback"
    assert not gate.stopped
    assert gate.judge(2, "planned", answers(0))[0].action == "stop"
    assert gate.stopped
    assert make(action="rollback").judge(1, "end", answers(0))[0].action == "stop"


def test_what_a_checkpoint_holds_is_all_there_is():
    gate = make(action="rollback")
    gate.judge(3, "alarm", answers(0))
    other = Gate(gate.config, gate.step_tokens)
    other.restore(json.loads(json.dumps(gate.state())))
    assert json.dumps(other.state()) == json.dumps(gate.state())
    assert [other.due(step, alarmed=True, ended=False) for step in range(40)] == [
        gate.due(step, alarmed=True, ended=False) for step in range(40)
    ]


def test_healthy_runs_are_rarely_stopped():
    """200 runs of 10 checks, of 32 rows right half the time; a tenth of the rows change at each, back and forth."""
    stopped = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        start = generator.random(32) < 0.5
        gate, rows = make(Answers({"rows": tuple(map(bool, start))}, 3200)), start.copy()
        for step in range(1, 11):
            rows = np.where(generator.random(32) < 0.1, generator.random(32) < 0.5, rows)
            if not gate.stopped:
                gate.judge(step, "planned", Answers({"rows": tuple(map(bool, rows))}, 3200))
        stopped += gate.stopped
    assert stopped <= 14


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "warmup_stable_decay"])
def test_lower_rates_stay_lower_on_the_same_schedule(schedule):
    def rates(factor: float) -> list[float]:
        optimizer = make_optimizer(torch.nn.Linear(2, 2), OptimConfig(lr=1.0))
        lr = make_schedule(optimizer, OptimConfig(lr=1.0, warmup_steps=2, schedule=schedule), 10)
        found = []
        for step in range(10):
            if step == 5:
                scale_rates(lr, factor)
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            lr.step()
        return found

    plain, halved = rates(1.0), rates(0.5)
    assert halved[:5] == plain[:5]
    assert halved[5:] == pytest.approx([rate / 2 for rate in plain[5:]])
