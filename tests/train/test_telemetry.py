from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

from onpolicy_sdft.objectives.objective import LossPart
from onpolicy_sdft.train.recorder import Recorder, over_ranks
from onpolicy_sdft.train.state import TrainState, Update
from onpolicy_sdft.train.telemetry import (
    distinct_n,
    length_metrics,
    loss_metrics,
    overlap,
    rollout_metrics,
    screen_metrics,
    shared_start,
)
from onpolicy_sdft.types import Demonstration, NoiseKey, PromptPair, Rollout, Target, Turn


def target(ids, reference, *, verdict="keep", reason="", finish="stop", attempt=0):
    demonstration = Demonstration("a", (Turn("user", "q"),), "r")
    pairs = PromptPair(demonstration, (1,), (1, 2), tuple(reference))
    n = len(ids)
    rollout = Rollout(NoiseKey(0, 0, "a"), (1, 2), tuple(ids), (-1.0,) * n, (-1.0,) * n, (0.5,) * n, finish)
    return Target(pairs, tuple(ids), "", verdict, reason, rollout, attempt)


def test_distinct_two_counts_different_pairs_among_all_pairs():
    assert distinct_n([[1, 2, 1, 2], [1, 2]], 2) == pytest.approx(2 / 4)
    assert distinct_n([[1]], 2) == 0.0


def test_overlap_is_the_share_of_n_grams_found_in_the_reference():
    assert overlap([1, 2, 3, 4, 5], [9, 1, 2, 3, 4]) == pytest.approx(1 / 2)
    assert overlap([1, 2], [0, 1, 2, 3]) == 1.0
    assert overlap([], [1]) == 0.0


def test_a_shared_start_is_what_a_text_of_another_row_begins_with_too():
    boilerplate = [("a", (1, 2, 3, 7)), ("b", (1, 2, 3, 8, 9, 9)), ("c", (5, 5))]
    assert shared_start(boilerplate) == pytest.approx((3 / 4 + 3 / 6 + 0) / 3)
    assert shared_start([("a", (1, 2)), ("a", (1, 2)), ("a", (1, 3))]) == 0.0, "samples of one row are alike by nature"
    assert shared_start([("a", (1, 2, 3)), ("a", (1, 2, 4)), ("b", (1, 9))]) == pytest.approx(
        (1 / 3 + 1 / 3 + 1 / 2) / 3
    )
    assert shared_start([("a", ())]) == shared_start([]) == 0.0


def test_a_shared_start_is_that_of_the_slow_way():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        draws = torch.randint(0, 2, (12, 6), generator=generator).tolist()
        texts = [(str(number % 5), tuple(ids[: 1 + number % 6])) for number, ids in enumerate(draws)]
        slow = []
        for own, ids in texts:
            others = [other for name, other in texts if name != own]
            slow.append(max(n for n in range(len(ids) + 1) if any(ids[:n] == other[:n] for other in others)) / len(ids))
        assert shared_start(texts) == pytest.approx(sum(slow) / len(slow))


def test_rates_are_over_what_was_written():
    targets = [
        target([1, 2, 3, 4], [1, 2, 3, 4]),
        target([5, 6], [1, 2], verdict="fallback", reason="check"),
        target([7], [1, 2], verdict="drop", reason="truncated", finish="length", attempt=2),
    ]
    screen = screen_metrics(targets)
    assert screen["screen/keep_rate"] == pytest.approx(1 / 3)
    assert screen["screen/reason/check_rate"] == pytest.approx(1 / 3)
    assert screen["screen/mean_attempts"] == pytest.approx(5 / 3)
    rollout = rollout_metrics([replace(targets[0], is_verbatim=True), *targets[1:]])
    assert rollout["rollout/mean_length"] == pytest.approx(7 / 3)
    assert rollout["rollout/length_ratio"] == pytest.approx(7 / 8)
    assert rollout["rollout/truncated_rate"] == pytest.approx(1 / 3)
    assert rollout["rollout/verbatim_rate"] == pytest.approx(1 / 3)
    assert rollout["rollout/entropy"] == pytest.approx(0.5)


def test_a_step_that_wrote_nothing_has_no_rollout_metrics():
    learned = Target(target([1], [1]).pair, (1,), "", "keep", "", None)
    assert rollout_metrics([learned]) == {}
    assert screen_metrics([learned]) == {}


def test_parts_of_the_loss_sum_to_it_and_rates_are_over_the_objectives_own_tokens():
    figures = {
        LossPart.OWN: 4.0,
        LossPart.PLAIN: 2.0,
        LossPart.IMPORTANCE: 6.0,
        LossPart.CLIPPED: 1.0,
        LossPart.OWN_TOKENS: 5,
    }
    found = loss_metrics("jsd", 6.0, [figures.get(part, 0.0) for part in LossPart], num_tokens=10)
    assert found == {
        "loss/total": pytest.approx(0.6),
        "loss/jsd": 0.4,
        "loss/demonstration_nll": 0.2,
        "loss/clipped_rate": 0.2,
        "loss/mean_importance": pytest.approx(1.2),
    }


def test_targets_that_are_skipped_whole_are_counted():
    targets = [target([1, 2, 3], [1]), target([1, 2], [1]), target([1], [1], verdict="drop"), target([1], [1])]
    assert length_metrics(targets, 2) == {"train/too_short_rate": pytest.approx(2 / 3)}
    assert length_metrics(targets, 0) == {}


class TwoRanks:
    """Another rank samples half as many tokens in half of the time."""

    device = torch.device("cpu")

    def gather(self, value):
        metrics, memory = value
        keys = ("rollout/num_tokens", "time/sampling_seconds")
        return [value, ({**metrics, **{key: metrics[key] / 2 for key in keys}}, memory)]


def test_ranks_sample_all_their_tokens_in_the_time_of_the_slowest():
    record = Recorder(TwoRanks(), "nll").begin()
    with record.phase("rollout"):
        record.note({"rollout/num_tokens": 100, "time/sampling_seconds": 4.0})
    update = Update(0.1, 0, 0, 0, 0.0, skipped="all_dropped")
    values = record.finish([], update, TrainState()).values
    assert values["rollout/tokens_per_second"] == (100 + 50) / 4.0
    assert (values["rollout/num_tokens"], values["time/sampling_seconds"]) == (150, 3.0)


def test_a_rank_without_a_value_is_none_of_those_that_its_mean_is_over():
    blended = {"rollout/blend": 0.5, "rollout/accept_rate": 0.2, "rollout/num_tokens": 9, "time/sampling_seconds": 4.0}
    assert over_ranks([blended | {"rollout/mismatch_max": 0.3}, {"rollout/mismatch_max": 0.1}]) == {
        "rollout/blend": 0.5,
        "rollout/accept_rate": 0.2,
        "rollout/num_tokens": 9,
        "rollout/mismatch_max": 0.3,
        "time/sampling_seconds": 2.0,  # the other sampled nothing, which took no time
    }
    assert over_ranks([{"rollout/num_out_of_memory": 1}, {"rollout/num_out_of_memory": 2}]) == {
        "rollout/num_out_of_memory": 3
    }


def test_phases_of_a_step_do_not_share_seconds():
    now = 0.0
    record = Recorder(TwoRanks(), "nll", clock=lambda: now).begin()
    with record.phase("rollout"):
        now += 1.0
        with record.phase("screen"):
            now += 2.0
        now += 4.0
    with record.phase("screen"):
        now += 8.0
    with contextlib.suppress(KeyError), record.phase("learn"), record.phase("score"):
        now += 16.0
        raise KeyError
    with record.phase("learn"):
        now += 32.0
    record.note({"rollout/num_tokens": 100, "time/sampling_seconds": 4.0})
    values = record.finish([], Update(0.1, 0, 0, 0, 0.0, skipped="all_dropped"), TrainState()).values
    assert [values[f"time/{name}_seconds"] for name in ("rollout", "screen", "score", "learn", "step")] == [
        5.0, 10.0, 16.0, 32.0, 63.0,
    ]  # fmt: skip
