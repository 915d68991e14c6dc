from __future__ import annotations

import os
import signal

import pytest
import torch

from onpolicy_sdft.config.schema import OptimConfig, TrainConfig
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.rollout.backend import RolloutStats
from onpolicy_sdft.runs.signals import caught_signals
from onpolicy_sdft.train.batch import repeat_samples
from onpolicy_sdft.train.loop import Plan, make_plan
from onpolicy_sdft.train.optim import make_optimizer, make_schedule
from onpolicy_sdft.train.source import PolicySource, Sampling, TargetSource
from onpolicy_sdft.types import Blend, Demonstration, PromptPair, SamplingParams, Turn


def test_steps_or_epochs_make_the_plan():
    assert make_plan(TrainConfig(max_steps=7, batch_size=4), 10) == Plan(7, None)
    assert make_plan(TrainConfig(num_epochs=2, batch_size=4), 10) == Plan(5, 20)
    assert make_plan(TrainConfig(num_epochs=1, batch_size=4), 10) == Plan(3, 10)


def test_a_batch_larger_than_the_data_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="batch_size 10 or less"):
        make_plan(TrainConfig(batch_size=11), 10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request_and_a_later_one_acts_at_once(number, monkeypatch):
    seen, now = [], 0.0
    monkeypatch.setattr("onpolicy_sdft.runs.signals.time.monotonic", lambda: now)
    before = signal.signal(number, lambda *_: seen.append("at once"))
    try:
        with caught_signals(once=True) as stop:
            assert stop.first is None
            os.kill(os.getpid(), number)
            assert stop.first == number
            now = 0.5
            os.kill(os.getpid(), number)  # a scheduler and a launcher both passed it on
            assert seen == []
            now = 2.0
            os.kill(os.getpid(), number)
            assert seen == ["at once"]
        os.kill(os.getpid(), number)
        assert seen == ["at once"] * 2, "handlers are put back"
    finally:
        signal.signal(number, before)


def test_norms_and_biases_are_not_decayed(tiny_model):
    optimizer = make_optimizer(tiny_model(), OptimConfig(weight_decay=0.1))
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in plain["params"])


@pytest.mark.parametrize(
    ("schedule", "fifth", "last"),
    [("constant", 1.0, 1.0), ("cosine", 0.99, 0.0), ("linear", 16 / 17, 0.0), ("warmup_stable_decay", 1.0, 0.0)],
)
def test_schedules_warm_up_and_then_stay_or_fall(schedule, fifth, last):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    lr = make_schedule(optimizer, OptimConfig(lr=1.0, warmup_steps=4, schedule=schedule), 20)
    rates = []
    for _ in range(20):
        rates.append(lr.get_last_lr()[0])
        optimizer.step()
        lr.step()
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, pytest.approx(fifth, abs=0.01)]
    assert lr.get_last_lr()[0] == pytest.approx(last, abs=1e-6)


def test_a_rate_that_falls_late_falls_in_the_steps_that_were_asked_for():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    options = OptimConfig(lr=1.0, warmup_steps=0, schedule="warmup_stable_decay", decay_steps=4)
    lr = make_schedule(optimizer, options, 10)
    rates = []
    for _ in range(10):
        rates.append(lr.get_last_lr()[0])
        optimizer.step()
        lr.step()
    assert rates == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])
    with pytest.raises(ConfigError, match=r"optim.warmup_steps=0 and 4 steps of decay .* more than the 3 steps"):
        make_schedule(optimizer, options, 3)


def make_pair(name):
    return PromptPair(Demonstration(name, (Turn("user", "q"),), "r"), (1,), (1, 2, 3), (4, 5))


class Recorder:
    """A backend that only remembers what it was asked."""

    stats = RolloutStats()

    def generate(self, requests, params, on_progress=None, record=None, listener=None):
        self.requests, self.params = requests, params
        return []


def test_requests_carry_the_teachers_prompt_the_key_and_the_demonstration_as_a_draft():
    backend = Recorder()
    source = PolicySource(backend, Sampling(SamplingParams(0.7), 9, seed=3))
    source.rollouts(repeat_samples([make_pair("a"), make_pair("b"), make_pair("a")], 1), step=5, attempt=1)
    first, second, third = backend.requests
    assert first.prompt_token_ids == (1, 2, 3)
    assert first.max_new_tokens == 9
    assert first.draft_token_ids == ((), (4, 5))
    assert (first.key.seed, first.key.step, first.key.example_id, first.key.attempt) == (3, 5, "a", 1)
    assert second.key.example_id == "b"
    assert (first.key.sample_index, third.key.sample_index) == (0, 1), "twice in a step must not repeat its noise"
    assert backend.params == SamplingParams(0.7)


def test_plain_fine_tuning_writes_nothing():
    assert TargetSource().rollouts([make_pair("a")] * 3, step=0) == [None] * 3


def test_samples_of_an_example_are_numbered_through_a_step():
    found = repeat_samples([make_pair("a"), make_pair("b"), make_pair("a")], 2)
    assert [(pair.demonstration.example_id, pair.presentation, pair.sample_index) for pair in found] == [
        ("a", 0, 0), ("a", 0, 1), ("b", 0, 0), ("b", 0, 1), ("a", 1, 2), ("a", 1, 3),
    ]  # fmt: skip


def test_a_sample_that_is_drawn_again_keeps_its_number():
    backend = Recorder()
    source = PolicySource(backend, Sampling(SamplingParams(), 9, seed=3))
    source.rollouts(repeat_samples([make_pair("a")], 3)[2:], step=0, attempt=1)
    assert backend.requests[0].key.sample_index == 2


def ask(step=0, num=1, **options):
    """What a source asks its backend for."""
    backend = Recorder()
    source = PolicySource(backend, Sampling(SamplingParams(1.0), 9, seed=3, **options))
    source.rollouts([make_pair(str(i)) for i in range(num)], step=step)
    return backend


def test_the_students_view_is_the_bare_prompt():
    assert ask(prompt="student").requests[0].prompt_token_ids == (1,)


def test_demonstration_dropout_leaves_out_that_share_and_repeats_itself():
    prompts = [request.prompt_token_ids for request in ask(num=2000, demonstration_dropout=0.3).requests]
    assert 0.26 < prompts.count((1,)) / 2000 < 0.34
    assert prompts == [request.prompt_token_ids for request in ask(num=2000, demonstration_dropout=0.3).requests]
    assert prompts != [r.prompt_token_ids for r in ask(step=1, num=2000, demonstration_dropout=0.3).requests]
    assert {r.prompt_token_ids for r in ask(num=50, demonstration_dropout=1.0).requests} == {(1,)}


def test_the_temperature_moves_from_its_start_to_its_end_over_the_run():
    temperatures = [ask(step=step, temperature_end=0.2, num_steps=5).params.temperature for step in range(7)]
    assert temperatures == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])


def test_min_p_moves_as_the_temperature_does_and_neither_moves_the_other():
    moved = [ask(step=step, min_p_end=0.4, num_steps=5).params for step in range(6)]
    assert [params.min_p for params in moved] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert {params.temperature for params in moved} == {1.0}


def test_a_blend_has_the_bare_prompt_unless_the_rollout_is_written_under_it():
    requests = ask(num=200, blend=0.4, blend_budget=0.2, demonstration_dropout=0.3).requests
    assert {request.blend for request in requests if request.prompt_token_ids == (1, 2, 3)} == {Blend((1,), 0.4, 0.2)}
    assert {request.blend for request in requests if request.prompt_token_ids == (1,)} == {None}
    assert ask().requests[0].blend is None
    assert ask(blend_budget=0.2).requests[0].blend == Blend((1,), 0.0, 0.2)
