from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from onpolicy_sdft.config.schema import RunConfig
from onpolicy_sdft.config.sweep import SweepConfig
from onpolicy_sdft.experiments.children import is_done
from onpolicy_sdft.experiments.grid import Excluded
from onpolicy_sdft.experiments.sweep_plan import Plan, make_plan
from onpolicy_sdft.experiments.sweep_results import (
    Row,
    plain_text,
    read_scores,
    shown_metrics,
    spread,
    start_rows,
    tabulate,
    to_csv,
    write_results,
)
from onpolicy_sdft.runs.files import read_json, write_json_atomic


def rows() -> list[Row]:
    """Two points, three seeds: of the second point one run failed and one is not done."""
    point, other = {"optim.lr": 0.1, "by": "a|b"}, {"optim.lr": 0.1, "by": None}
    return [
        Row("a0", "runs/a0", point, 0, "done", scores={"eval/task/score": 0.25, "eval/kl": 0.5, "train/steps": 4.0}),
        Row("a1", "runs/a1", point, 1, "done", scores={"eval/task/score": 0.75, "eval/kl": 1.5, "train/steps": 4.0}),
        Row("a2", "runs/a2", point, 2, "done", scores={"eval/task/score": 0.5, "train/steps": 1234.0}),
        Row("b0", "runs/b0", other, 0, "failed", "sdft train: 5 steps in a row made no update"),
        Row("b1", "runs/b1", other, 1, "done", scores={"eval/task/score": 1.0, "train/steps": 3.0}),
        Row("b2", "runs/b2", other, 2, "pending", scores={"eval/task/score": 9.0}),
    ]


def test_a_spread_is_what_numpy_says():
    values = [0.25, 0.75, 0.5, 0.1]
    found = spread(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["sd"] == pytest.approx(np.std(values, ddof=1))
    assert (found["low"], found["high"], found["n"], found["values"]) == (0.1, 0.75, 4, values)
    assert spread([2.0]) == {"mean": 2.0, "low": 2.0, "high": 2.0, "sd": None, "n": 1, "values": [2.0]}


def test_only_runs_that_are_done_count_and_the_others_are_counted():
    first, second = tabulate(rows())
    assert first["point"] == {"optim.lr": 0.1, "by": "a|b"}
    assert first["scores"]["eval/task/score"]["values"] == [0.25, 0.75, 0.5]
    assert first["scores"]["eval/task/score"]["mean"] == 0.5
    assert first["scores"]["eval/kl"] == {
        "mean": 1.0, "low": 0.5, "high": 1.5, "sd": pytest.approx(0.5**0.5), "n": 2, "values": [0.5, 1.5],
    }  # fmt: skip
    assert (first["num_failed"], second["num_failed"]) == (0, 1)
    assert second["scores"]["eval/task/score"]["n"] == 1


def test_a_point_whose_runs_all_failed_stays_in_the_table():
    (only,) = tabulate([Row("a", "runs/a", {"x": 1}, 0, "failed", "why")])
    assert only == {"point": {"x": 1}, "scores": {}, "num_failed": 1}


def test_the_table_shows_scores_distance_and_steps_unless_asked_for_others():
    table = tabulate(rows())
    assert shown_metrics([], table) == ["eval/task/score", "eval/kl", "train/steps"]
    assert shown_metrics(["train/steps"], table) == ["train/steps"]


def test_the_csv_has_a_row_a_point_and_plain_numbers():
    text = to_csv(tabulate(rows()), ["optim.lr", "by"], ["eval/task/score", "eval/kl"])
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["optim.lr"], first["by"], first["failed"]) == ("0.1", "a|b", "0")
    assert [float(first[f"eval/kl {part}"]) for part in ("mean", "low", "high", "n")] == [1.0, 0.5, 1.5, 2.0]
    assert float(first["eval/kl sd"]) == pytest.approx(0.5**0.5)
    assert (second["eval/task/score mean"], second["eval/task/score sd"], second["eval/kl mean"]) == ("1.0", "", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1, "0.1"), (1e-5, "1e-05"), (0.12345678, "0.12345678"), (None, "null"), (True, "true"), ("a b", "a b"),
     (3, "3"), ([1, "a"], '[1, "a"]')],
)  # fmt: skip
def test_values_of_axes_are_shown_as_people_write_them(value, text):
    assert plain_text(value) == text


def test_scores_are_read_from_the_run_directory(tmp_path, finished_run):
    finished_run(tmp_path / "run", score=0.7, kl=0.03, steps=4)
    assert read_scores(tmp_path / "run", ["rollout/mean_length", "screen/keep_rate", "eval/kl"]) == {
        "eval/task/score": 0.7,
        "eval/kl": 0.03,
        "train/steps": 4.0,
        "train/total_loss_tokens": 40.0,  # of the last step: it counts them all
        "train/seconds": 2.0,
        "rollout/mean_length": 2.5,  # the mean over steps of 1, 2, 3, 4
    }


def test_a_run_is_done_once_it_has_its_model_its_report_and_its_scores(tmp_path, finished_run):
    config = RunConfig()
    assert not is_done(tmp_path / "none", config)
    finished_run(tmp_path / "run")
    assert is_done(tmp_path / "run", config)
    (tmp_path / "run" / "report.html").unlink()  # killed while it drew its plots
    assert not is_done(tmp_path / "run", config)
    (tmp_path / "run" / "report.html").touch()
    summary = read_json(tmp_path / "run" / "eval" / "summary.json")
    write_json_atomic(tmp_path / "run" / "eval" / "summary.json", {"before": summary["before"]})
    assert not is_done(tmp_path / "run", config)
    config.eval.kl_prompts = 0
    assert is_done(tmp_path / "run", config)


def test_the_files_of_a_sweep_say_everything(tmp_path, finished_run):
    config = SweepConfig(
        axes={"optim.lr": [0.1, 0.2], "by": [{"label": "x", "optim.eps": 1e-6}]}, seeds=[0, 1],
        output_dir=str(tmp_path), metrics=["eval/kl", "screen/keep_rate"],
    )  # fmt: skip
    plan = make_plan(config)
    plan = Plan(plan.runs, (Excluded({"optim.lr": 0.3, "by": "x"}, "too hot"),))
    found = start_rows(plan, tmp_path)
    assert {row.state for row in found} == {"pending"}
    for row, kl in zip(found[:2], (0.1, 0.2), strict=True):
        finished_run(tmp_path / row.run, kl=kl)
        row.state, row.scores = "done", read_scores(tmp_path / row.run)
    found[2].state, found[2].reason, found[2].seconds = "failed", "sdft train: no | luck", 12.5
    table = write_results(config, plan, found, tmp_path)
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["axes"] == {"optim.lr": [0.1, 0.2], "by": ["x"]}
    assert (record["seeds"], record["table"], record["metrics"]) == ([0, 1], table, config.metrics)
    assert record["base_model"] == {"eval/task/score": 0.25}
    assert record["excluded"] == [{"values": {"optim.lr": 0.3, "by": "x"}, "why": "too hot"}]
    assert record["runs"][2] == {
        "name": "lr-0.1_by-x_seed-1", "run": "runs/lr-0.1_by-x_seed-1", "point": {"optim.lr": 0.1, "by": "x"},
        "seed": 1, "state": "failed", "reason": "sdft train: no | luck", "seconds": 12.5, "scores": {},
    }  # fmt: skip
    assert (tmp_path / "table.csv").read_text().startswith("optim.lr,by,eval/kl mean,")


def test_what_failed_or_stopped_before_is_remembered_with_its_time(tmp_path):
    config = SweepConfig(axes={"optim.lr": [0.1, 0.2]}, output_dir=str(tmp_path))
    plan = make_plan(config)
    found = start_rows(plan, tmp_path)
    found[0].state, found[0].reason, found[0].seconds = "failed", "why", 3.0
    write_results(config, plan, found, tmp_path)
    again = start_rows(plan, tmp_path)
    assert (again[0].state, again[0].reason, again[0].seconds) == ("failed", "why", 3.0)
    assert (again[1].state, again[1].seconds) == ("pending", 0.0)


def test_the_seed_models_scores_are_shown_only_where_all_runs_agree(tmp_path, finished_run):
    config = SweepConfig(axes={"optim.lr": [0.1, 0.2]}, output_dir=str(tmp_path))
    plan = make_plan(config)
    found = start_rows(plan, tmp_path)
    for row, before in zip(found, (0.25, 0.3), strict=True):
        finished_run(tmp_path / row.run, before=before)
        row.state, row.scores = "done", read_scores(tmp_path / row.run)
    write_results(config, plan, found, tmp_path)
    assert read_json(tmp_path / "sweep.json")["base_model"] == {}
    found[1].state = "pending"
    write_results(config, plan, found, tmp_path)
    assert read_json(tmp_path / "sweep.json")["base_model"] == {"eval/task/score": 0.25}
