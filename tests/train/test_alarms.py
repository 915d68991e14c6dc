"""Alarms fire within three steps of a collapse, say it once, and keep quiet in ordinary noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from onpolicy_sdft.config.schema import AlarmConfig
from onpolicy_sdft.train.alarms import Alarm, Alarms, signals

HEALTHY = {
    "rollout/mean_length": 171.0, "train/num_loss_tokens": 779.0, "rollout/entropy": 0.58, "screen/keep_rate": 0.75,
    "rollout/surprise": 0.37, "rollout/verbatim_rate": 0.02, "rollout/length_ratio": 1.4, "rollout/truncated_rate": 0.1,
}  # fmt: skip
#: What shared/reference/shortcut.md saw once every rollout was "The answer is 72.", and what it did not log.
COLLAPSED = {
    "rollout/mean_length": 8.0, "train/num_loss_tokens": 63.0, "rollout/entropy": 0.03, "screen/keep_rate": 0.0,
    "rollout/surprise": 1.67,
}  # fmt: skip
RELATIVE = ("rollout/mean_length", "train/num_loss_tokens", "rollout/entropy", "rollout/surprise")


def make(num_rollouts: int = 8, **options: float | None) -> Alarms:
    config = AlarmConfig(**options)
    return Alarms(signals(config, 2.0, 0.3), config.patience_steps, config.reference_steps, num_rollouts)


def replay(alarms: Alarms, steps: list[Mapping[str, float]], first: int = 1) -> list[Alarm]:
    return [alarm for step, values in enumerate(steps, first) for alarm in alarms.watch(step, values)]


@pytest.mark.parametrize("healthy", [1, 2, 5, 30])
@pytest.mark.parametrize("key", COLLAPSED)
def test_each_collapse_is_said_within_three_steps_of_it(key, healthy):
    steps = [HEALTHY] * healthy + [{**HEALTHY, key: COLLAPSED[key]}] * 10
    (alarm,) = replay(make(), steps)
    assert alarm.key == key
    assert alarm.since == healthy + 1
    assert alarm.step <= healthy + 3


def test_the_shortcut_is_noticed_as_its_lengths_fall_within_three_steps():
    lengths, tokens = (171, 60, 8, 8, 8), (779, 400, 63, 63, 63)
    steps = [{"rollout/mean_length": a, "train/num_loss_tokens": b} for a, b in zip(lengths, tokens, strict=True)]
    found = replay(make(), steps)
    assert [(alarm.key, alarm.step, alarm.since) for alarm in found] == [
        ("rollout/mean_length", 5, 3), ("train/num_loss_tokens", 5, 3),
    ]  # fmt: skip
    assert found[0].text == (
        "rollouts became short: rollout/mean_length 116 (that of the first steps) -> 8, below 38.1 "
        "(alarms.length_fall=0.33) since step 3. Fix: look at rollouts.jsonl; then another context.template, or a "
        "higher screening.min_length_ratio."
    )


def test_against_bare_answers_a_shortcut_from_the_very_first_step_is_noticed():
    bare = {"bare/of_right": 1.0, "bare/length": 259.0, "bare/surprise": 0.17}
    steps = [{**bare, "rollout/mean_length": 8.0, "rollout/surprise": 1.67}, *[{"rollout/mean_length": 8.0}] * 2]
    (alarm,) = replay(make(), steps)
    assert (alarm.step, alarm.since, alarm.before) == (3, 1, 259.0)
    assert "259 (the bare answers')" in alarm.text


def test_bare_answers_that_collapse_as_well_hide_nothing():
    def step(length: float) -> dict[str, float]:
        return {"bare/of_right": 1.0, "bare/length": length, "rollout/mean_length": length}

    assert replay(make(), [step(259.0), *[step(8.0)] * 3])


def test_own_words_are_no_surprise_and_copies_are():
    bare = {"bare/of_right": 1.0, "bare/surprise": 0.17}
    assert not replay(make(), [{**bare, "rollout/surprise": 0.43}] * 5)
    assert replay(make(), [{**bare, "rollout/surprise": 0.87}] * 5)


def test_copies_are_an_alarm_where_answers_are_long_enough_to_differ():
    copies = {"rollout/verbatim_rate": 0.9}
    assert [a.step for a in replay(make(), [{**copies, "rollout/mean_length": 40.0}] * 9)] == [3]
    assert not replay(make(), [{**copies, "rollout/mean_length": 3.0}] * 9)


def test_one_sentence_around_every_answer_is_noticed_where_answers_are_long_enough():
    shares = (0.02, 0.01, 0.03, 0.02, 0.21, 0.25, 0.25, 0.3)  # OpenFunctions at 0.5B: docs/log.md
    steps = [{"rollout/shared_start": share, "rollout/mean_length": 70.0} for share in shares]
    (alarm,) = replay(make(), steps)
    assert (alarm.key, alarm.since, alarm.step) == ("rollout/shared_start", 5, 7)
    assert "2% (that of the first steps) -> 25%, above 12% (alarms.shared_start_rise=0.1)" in alarm.text
    assert not replay(make(), [{**step, "rollout/mean_length": 9.0} for step in steps])
    assert not replay(make(), [{"rollout/shared_start": 0.4, "rollout/mean_length": 30.0}] * 9), "so from the start"


def test_texts_that_become_random_are_noticed_and_a_multiple_of_nothing_is_not():
    # GSM8K at 0.5B, T = 1, steps of 8: docs/log.md
    entropy = (0.35, 0.392, 0.43, 0.699, 0.628, 0.517, 0.68, 0.722, 1.022, 0.74)
    (alarm,) = replay(make(), [{"rollout/entropy": value} for value in entropy])
    assert (alarm.key, alarm.since, alarm.step) == ("rollout/entropy", 7, 9)
    assert "above 0.658 (alarms.entropy_rise=1.6) since step 7" in alarm.text
    assert not replay(make(), [{"rollout/entropy": value} for value in (0.02, 0.03, 0.02, *[0.15] * 9)])


def test_an_alarm_on_one_side_of_a_metric_leaves_the_other_on():
    falls, rises = [{"rollout/entropy": 0.03}] * 3, [{"rollout/entropy": 1.7}] * 3
    assert [alarm.step for alarm in replay(make(), [HEALTHY, *falls, *rises])] == [4, 7]


def test_limits_of_their_own_warn_of_long_and_cut_rollouts():
    found = replay(make(), [{"rollout/length_ratio": 3.0, "rollout/truncated_rate": 0.5}] * 4)
    assert [(alarm.step, alarm.key) for alarm in found] == [
        (3, "rollout/length_ratio"), (3, "rollout/truncated_rate"),
    ]  # fmt: skip
    assert "50%, above 30% (train.warn_truncated_rate=0.3)" in found[1].text


def test_null_turns_an_alarm_off_and_absent_metrics_are_no_alarm():
    assert not replay(make(length_fall=None), [HEALTHY, *[{**HEALTHY, "rollout/mean_length": 8.0}] * 9])
    assert not replay(make(), [HEALTHY, *[{"loss/total": 1.0}] * 9])
    assert not replay(make(), [HEALTHY, *[{"rollout/entropy": float("nan")}] * 9])


def test_one_odd_step_is_no_alarm():
    odd = {**HEALTHY, **COLLAPSED}
    assert not replay(make(), [HEALTHY, odd, odd, HEALTHY] * 10)


def noisy(seed: int, num_steps: int, num_rollouts: int) -> Iterator[dict[str, float]]:
    """A healthy run whose figures scatter as means over a few rollouts do: 60 % a rollout, and drift."""
    generator = np.random.default_rng(seed)
    scatter = 0.6 / np.sqrt(num_rollouts)
    for step in range(num_steps):
        drift = 1 - 0.3 * step / num_steps  # answers become a little shorter and surer
        values = {key: HEALTHY[key] * drift * float(np.exp(scatter * generator.normal())) for key in RELATIVE}
        kept = generator.binomial(num_rollouts, 0.5) / num_rollouts
        copied, cut = generator.binomial(num_rollouts, [0.2, 0.1]) / num_rollouts
        values["rollout/shared_start"] = 0.05 * float(np.exp(scatter * generator.normal()))
        yield {**values, "screen/keep_rate": kept, "rollout/verbatim_rate": copied, "rollout/truncated_rate": cut}


@pytest.mark.parametrize("num_rollouts", [2, 8, 16])
@pytest.mark.few(1)
def test_at_most_five_of_two_hundred_healthy_runs_have_an_alarm(num_rollouts):
    """200 runs of 200 steps each, half of whose rollouts fall back and a tenth of whose are cut."""
    alarmed = sum(bool(replay(make(num_rollouts), list(noisy(seed, 200, num_rollouts)))) for seed in range(200))
    assert alarmed <= 5


def test_a_resumed_run_says_the_same_lines():
    steps = [HEALTHY, HEALTHY, *[{**HEALTHY, **COLLAPSED}] * 6]
    whole, first = make(), make()
    expected = replay(whole, steps)
    for cut in range(len(steps)):
        first, second = make(), make()
        replay(first, steps[:cut])
        second.restore(json.loads(json.dumps(first.state())))
        replay(second, steps[cut:], cut + 1)
        assert second.history == expected == whole.history


def test_after_going_back_a_collapse_is_said_again():
    alarms = make()
    collapsed = {**HEALTHY, "rollout/mean_length": 8.0}
    assert len(replay(alarms, [HEALTHY, *[collapsed] * 9])) == 1
    alarms.rearm()
    assert len(replay(alarms, [collapsed] * 3, 11)) == 1
    assert len(alarms.history) == 2
