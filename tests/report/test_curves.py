"""Curves: what is drawn, and what is not."""

import io
import math

import pytest
from PIL import Image

from onpolicy_sdft.report.curves import CURVES, draw_curves, draw_loss, draw_time
from onpolicy_sdft.report.drawing import series, smooth
from onpolicy_sdft.report.score_plots import draw_scores


def record(step, skipped="", **values):
    return {"step": step, "skipped": skipped, "time": 0.0, "values": values}


def full(step):
    values = {
        "loss/total": 1.0 / step,
        "rollout/mean_length": 60.0,
        "rollout/length_ratio": 1.1,
        "rollout/truncated_rate": 0.0,
        "rollout/entropy": 0.7,
        "rollout/distinct_2": 0.8,
        "rollout/demonstration_overlap": 0.5,
        "rollout/surprise": 0.4,
        "rollout/leak": -0.1,
        "bare/surprise": 0.2,
        "screen/fallback_rate": 0.25,
        "screen/drop_rate": 0.0,
        "screen/reason/wrong_answer_rate": 0.25,
        "screen/reason/looping_rate": 0.0,
        "time/rollout_seconds": 5.0,
        "time/screen_seconds": 0.5,
        "time/learn_seconds": 6.0,
        "time/step_seconds": 12.0,
        "eval/validation/score": 0.5,
        "memory/rollout_mib": 2048,
    }
    return record(step, **values)


SUMMARY = {
    "before": {"sets": [{"label": "task", "score": 0.4, "low": 0.3, "high": 0.5, "n": 64}]},
    "after": {
        "sets": [
            {"label": "task", "score": 0.9, "low": None, "high": None, "n": 64},
            {"label": "$other$", "score": 1.0, "low": 0.9, "high": 1.0, "retention": True},
        ]
    },
}


@pytest.mark.parametrize("num_steps", [1, 40])
def test_every_curve_is_drawn_for_a_run_of_one_step_or_many(num_steps):
    pictures, missing = draw_curves([full(step) for step in range(1, num_steps + 1)], SUMMARY)
    assert list(pictures) == list(CURVES)
    assert missing == []
    for png in pictures.values():
        assert min(Image.open(io.BytesIO(png)).size) > 300


def test_a_run_without_anything_draws_nothing_and_says_so():
    pictures, missing = draw_curves([], {})
    assert pictures == {}
    assert missing == [curve.title for curve in CURVES.values()]


def test_steps_without_figures_draw_nothing():
    metrics = [record(1, skipped="all_dropped"), {"step": 2}, record(3, **{"loss/total": None})]
    assert draw_curves(metrics, {"before": {"sets": []}})[0] == {}


def test_null_is_a_gap():
    steps, values = series([record(1, a=1.0), record(2, a=None), record(3)], "a")
    assert steps == [1, 2]
    assert values[0] == 1.0
    assert math.isnan(values[1])


def test_steps_without_an_update_are_marked_in_the_loss():
    figure = draw_loss([record(1, **{"loss/total": 1.0}), record(2, skipped="all_dropped")], {})
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["loss", "no update (steps: 1)"]


def test_a_reason_that_never_occurred_is_not_in_the_legend():
    figure = CURVES["fallbacks"].draw([full(1), full(2)], {})
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["fallback (all reasons)", "wrong answer"]


def test_time_is_split_so_that_the_parts_add_up_to_the_step():
    figure = draw_time([full(1)], {})
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [5.0, 0.5, 6.0, 0.5]
    assert bars[-1].get_y() + bars[-1].get_height() == 12.0


def test_a_part_that_takes_next_to_nothing_is_left_to_the_other_time():
    figure = draw_time(
        [record(1, **{"time/step_seconds": 10.0, "time/score_seconds": 0.001, "time/learn_seconds": 6})], {}
    )
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["learn (60%)", "other (40%)"]


def test_memory_is_drawn_in_gibibytes():
    (line,) = CURVES["memory"].draw([full(1), full(2)], {}).axes[0].lines
    assert line.get_ydata().tolist() == [2.0, 2.0]


def test_score_bars_carry_their_intervals_and_task_and_retention_stand_apart():
    figure = draw_scores([], SUMMARY)
    assert [axes.get_title() for axes in figure.axes] == ["task (being taught)", "retention"]
    (whisker,) = figure.axes[0].containers[1].lines[2]
    assert whisker.get_segments()[0][:, 1].tolist() == pytest.approx([0.3, 0.5])


def test_smoothing_keeps_the_ends_and_a_constant_and_bridges_gaps():
    values = [1.0, *[0.5] * 60, math.nan, 0.5, 2.0]
    smoothed = smooth(values)
    assert smoothed[0] == 1.0
    assert smoothed[-1] == 2.0
    assert smoothed[30] == pytest.approx(0.5)
    assert all(math.isfinite(value) for value in smoothed)
