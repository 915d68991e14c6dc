"""What the pictures show, read off the figures themselves."""

import pytest
from places import METHODS, make_comparison, make_sweep, metrics, sequence

from onpolicy_sdft.report.charts import Track, chain, chart_pictures
from onpolicy_sdft.report.comparison_plots import draw_metrics, draw_trade, draw_tuning
from onpolicy_sdft.report.drawing import BLUE, plot_text
from onpolicy_sdft.report.score_plots import draw_scores_of_runs
from onpolicy_sdft.report.sequence_plots import draw_forgetting, draw_matrix, draw_stages, draw_stages_of_methods
from onpolicy_sdft.report.shifts import draw_similarities
from onpolicy_sdft.report.sweep_plots import draw_axis, is_logarithmic, is_numeric
from onpolicy_sdft.runs.files import read_json


def written(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def test_the_heat_map_has_value_and_interval_in_each_cell_and_retention_apart():
    tasks, held = draw_matrix(sequence()).axes
    assert (tasks.get_title(), held.get_title()) == ("tasks", "never trained")
    assert written(tasks)[:4] == ["0.20", "0.15 to 0.25", "0.10", "0.05 to 0.15"]
    assert written(held) == [
        "0.50", "0.45 to 0.55", "0.45", "0.40 to 0.50", "0.40", "0.35 to 0.45", "0.35", "0.30 to 0.40",
    ]  # fmt: skip
    assert ticks(tasks.yaxis) == ["base model", "after code", "after calls", "after math"]
    assert ticks(tasks.xaxis) == ["code\nn = 128", "calls\nn = 128", "math\nn = 128"]
    corners = [(patch.get_x(), patch.get_y()) for patch in tasks.patches]
    assert corners == [(i - 0.48, i + 1 - 0.48) for i in range(3)]  # stage i + 1 trained task i


def test_joint_training_frames_every_task_and_what_was_not_measured_is_a_dash():
    content = {**sequence(), "joint": True, "retention_labels": []}
    content["stages"] = [{"label": "joint", "run": "stage-1-joint"}]
    content["matrix"] = {"value": [[0.1, 0.2, None], [0.5, 0.6, 0.7]], "low": None, "high": None}
    (axes,) = draw_matrix(content).axes
    assert written(axes) == ["0.10", "0.20", "-", "0.50", "0.60", "0.70"]
    assert len(axes.patches) == 3


def test_forgetting_is_a_bar_a_task_with_its_interval():
    (axes,) = draw_forgetting(sequence()["forgetting_by_task"]).axes
    bars, whiskers, *_ = axes.containers
    assert bars[0].get_width() == pytest.approx(0.3)
    assert ticks(axes.yaxis) == ["code", "calls"]
    ends = whiskers.lines[2][0].get_segments()[0][:, 0].tolist()
    assert ends == pytest.approx([0.25, 0.35])
    assert draw_forgetting({}) is None


def test_scores_over_the_stages_have_a_line_a_set():
    (axes,) = draw_stages(sequence()).axes
    lines = {line.get_label(): line for line in axes.containers}
    assert list(lines) == ["code", "calls", "math", "short_facts"]
    assert lines["code"].lines[0].get_ydata().tolist() == [0.2, 0.7, 0.5, 0.4]
    assert lines["short_facts"].lines[0].get_linestyle() == "--"


def test_methods_over_the_stages_are_means_over_seeds():
    both = {"sft": [sequence(), sequence(lost=0.1)], "sdft": [sequence()]}
    figure = draw_stages_of_methods(both)
    assert [axes.get_title() for axes in figure.axes] == ["code", "calls", "math", "short_facts (never trained)"]
    lines = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    assert lines["sft"] == pytest.approx([0.2, 0.7, 0.5, 0.35])
    assert lines["sdft"] == pytest.approx([0.2, 0.7, 0.5, 0.4])
    assert draw_stages_of_methods({}) is None


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return read_json(make_comparison(tmp_path_factory.mktemp("comparison")) / "comparison.json")


def test_the_trade_has_a_point_a_method_and_seed(comparison):
    figure = draw_trade(comparison["rows"], METHODS)
    lost, kept = figure.axes
    assert "forgetting" in lost.get_xlabel()
    assert "never trained" in kept.get_xlabel()
    points = [line for line in lost.lines if line.get_marker() in "osD^" and len(line.get_xdata()) == 1]
    assert len(points) == 8
    assert points[0].get_xdata()[0] == pytest.approx(0.25)
    assert points[0].get_ydata()[0] == pytest.approx(0.5667, abs=1e-4)
    assert written(lost) == ["0", "1"] * 4
    assert draw_trade([{"metrics": {}}], METHODS) is None


def test_metrics_by_method_mark_the_mean_of_the_seeds(comparison):
    figure = draw_metrics(comparison["rows"], METHODS, ["forgetting"])
    bars = [
        line.get_ydata()[0]
        for line in figure.axes[0].lines
        if len(line.get_xdata()) == 2 and line.get_color() == "#000000"
    ]
    assert bars == pytest.approx([0.255, 0.275, 0.295, 0.315])


def test_learning_rates_are_on_a_logarithmic_axis_and_the_chosen_ringed(comparison):
    (axes,) = draw_tuning(comparison["tuning"], METHODS).axes
    assert axes.get_xscale() == "log"
    assert ticks(axes.xaxis) == ["0.0001", "0.001"]
    assert sum(line.get_markersize() == 11 for line in axes.lines) == 4
    assert draw_tuning([{"method": "sft", "lr": 0.1, "score": None}], METHODS) is None


def test_a_numeric_axis_is_a_line_of_means_with_its_range(tmp_path):
    sweep = read_json(make_sweep(tmp_path) / "sweep.json")
    figure = draw_axis("optim.lr", sweep["axes"], sweep["table"], ["eval/code/score"])
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["targets demonstrations"].get_ydata().tolist() == pytest.approx([0.407, 0.425, 0.605])
    assert lines["targets policy"].get_xdata().tolist() == [1e-4, 1e-3]  # both runs at 1e-2 failed
    shade = axes.collections[0].get_paths()[0].vertices
    assert shade[:, 1].min() == pytest.approx(0.402)


def test_a_named_axis_is_dots_and_bars_at_its_names(tmp_path):
    sweep = read_json(make_sweep(tmp_path) / "sweep.json")
    figure = draw_axis("train.targets", sweep["axes"], sweep["table"], ["eval/code/score"])
    (axes,) = figure.axes
    assert ticks(axes.xaxis) == ["policy", "demonstrations"]
    assert len(figure.legends[0].get_texts()) == 3  # a learning rate each


def test_which_axes_have_an_order_and_which_are_logarithmic():
    assert is_numeric([1, 2.5])
    assert not is_numeric([1])
    assert not is_numeric([True, False])
    assert not is_numeric([1, "two"])
    assert is_logarithmic("optim.lr", [1e-4, 3e-4])
    assert is_logarithmic("model.rank", [1, 64])
    assert not is_logarithmic("model.rank", [4, 8])
    assert not is_logarithmic("optim.lr", [0, 1e-3])


def test_similarities_are_overlaid_with_their_means():
    runs = [{"name": "sft", "similarities": [0.2, 0.4]}, {"name": "sdft", "similarities": [0.9, 1.0]}]
    (axes,) = draw_similarities({"runs": runs}).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["sft (mean 0.300)", "sdft (mean 0.950)"]
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([0.3, 0.95])
    assert draw_similarities({"runs": [{"name": "x", "similarities": []}]}) is None


def test_stages_behind_each_other_count_their_steps_through():
    logs = [[metrics(1), metrics(2)], [metrics(1)], [metrics(1), metrics(3)]]
    chained, ends = chain(logs)
    assert [record["step"] for record in chained] == [1, 2, 3, 4, 6]
    assert ends == [2, 3]
    assert chain([]) == ([], [])


def test_an_overlay_leaves_out_metrics_that_nobody_has_and_zeros():
    zero = {"step": 1, "values": {"rollout/verbatim_rate": 0.0, "train/grad_norm": 2.0, "eval/validation/score": 0.5}}
    tracks = [Track("a", [zero], ("a.jsonl",)), Track("b", [{"step": 1, "values": {}}], ("b.jsonl",))]
    pictures = [picture for picture in chart_pictures(tracks) if picture]
    assert [picture.name for picture in pictures] == ["train-grad_norm", "eval-validation-score"]
    assert pictures[0].sources == ("a.jsonl",)


def test_scores_of_runs_show_before_and_after():
    def entry(score):
        return {"sets": [{"label": "code", "score": score, "low": score - 0.1, "high": score + 0.1}]}

    figure = draw_scores_of_runs({"a": {"before": entry(0.2), "after": entry(0.6)}, "b": {"eval": entry(0.4)}})
    (axes,) = figure.axes
    points = [(c.lines[0].get_xdata()[0], c.lines[0].get_color() == BLUE) for c in axes.containers]
    assert points == [(0.2, False), (0.6, True), (0.4, True)]
    assert ticks(axes.yaxis) == ["a", "b"]
    assert draw_scores_of_runs({"a": {}}) is None


def test_names_in_plots_are_short_and_no_formulas():
    assert plot_text("$x$") == "\\$x\\$"
    assert plot_text("x" * 30, 10) == "x" * 9 + "…"
    assert plot_text("\ud800") == "?"
