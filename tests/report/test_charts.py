"""Charts of one run: what is drawn, and what is not."""

import io
import math

import pytest
from PIL import Image

from onpolicy_sdft.report.charts import CHARTS, draw_chart, draw_time
from onpolicy_sdft.report.drawing import png_bytes, series, smooth
from onpolicy_sdft.report.score_plots import draw_scores
from onpolicy_sdft.runs.metrics import METRICS


def record(step, skipped="", **values):
    return {"step": step, "skipped": skipped, "time": 0.0, "values": values}


def full(step):
    values = {
        "loss/total": 1.0 / step,
        "train/grad_norm": 0.5,
        "train/tokens_per_second": 30.0,
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
@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.few(10)
def test_every_chart_is_drawn_for_a_run_of_one_step_or_many(chart, num_steps):
    png = png_bytes(draw_chart(chart, [full(step) for step in range(1, num_steps + 1)]))
    assert min(Image.open(io.BytesIO(png)).size) > 300


@pytest.mark.parametrize("chart", CHARTS)
def test_a_run_without_figures_draws_nothing(chart):
    metrics = [record(1, skipped="all_dropped"), {"step": 2}, record(3, **{"loss/total": None})]
    assert draw_chart(chart, []) is draw_chart(chart, metrics) is None


def test_each_chart_of_the_registry_is_known_and_each_known_one_has_a_metric():
    assert {metric.chart for metric in METRICS if metric.chart} == set(CHARTS)


def test_metrics_of_one_unit_share_a_panel_and_are_named_apart():
    figure = draw_chart("surprise", [full(1), full(2)])
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["surprise (rollout)", "leak", "surprise (bare)"]
    assert [axes.get_ylabel() for axes in draw_chart("diversity", [full(1)]).axes] == ["nats a token", "share"]


def test_what_is_zero_throughout_is_drawn_where_nothing_else_is():
    rates = {"screen/fallback_rate": 0.0, "screen/drop_rate": 0.0}
    texts = draw_chart("fallbacks", [record(1, **rates)]).axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["fallback", "drop"]


def test_null_is_a_gap():
    steps, values = series([record(1, a=1.0), record(2, a=None), record(3)], "a")
    assert steps == [1, 2]
    assert values[0] == 1.0
    assert math.isnan(values[1])


def test_steps_without_an_update_are_marked_in_the_loss():
    figure = draw_chart("loss", [record(1, **{"loss/total": 1.0}), record(2, skipped="all_dropped")])
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["total", "no update (steps: 1)"]


def test_a_reason_that_never_occurred_is_not_in_the_legend():
    figure = draw_chart("fallbacks", [full(1), full(2)])
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["fallback", "wrong answer"]


def test_time_is_split_so_that_the_parts_add_up_to_the_step():
    figure = draw_time([full(1)])
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [5.0, 0.5, 6.0, 0.5]
    assert bars[-1].get_y() + bars[-1].get_height() == 12.0


def test_a_part_that_takes_next_to_nothing_is_left_to_the_other_time():
    figure = draw_time([record(1, **{"time/step_seconds": 10.0, "time/score_seconds": 0.001, "time/learn_seconds": 6})])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["learn (60%)", "other (40%)"]


def test_memory_is_drawn_in_gibibytes():
    (line,) = draw_chart("memory", [full(1), full(2)]).axes[0].lines
    assert line.get_ydata().tolist() == [2.0, 2.0]


def test_score_bars_carry_their_intervals_and_task_and_retention_stand_apart():
    figure = draw_scores(SUMMARY)
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
