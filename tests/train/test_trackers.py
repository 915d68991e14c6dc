"""Trackers by name."""

from __future__ import annotations

import json
import time
from threading import Event

import pytest
from accelerate import PartialState
from tiny import write_run

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.config.schema import TrackingConfig
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.train import trackers
from onpolicy_sdft.train.trackers import check_trackers, hyperparameters, open_trackers
from onpolicy_sdft.types import Demonstration, PromptPair, Target, Turn


def test_an_unknown_tracker_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"train\.trackers: 'tensorbord'.*'tensorboard'"):
        check_trackers(["tensorbord"])


def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    for name in ("wandb", "trackio", "mlflow", "swanlab"):
        with pytest.raises(ConfigError, match=rf"onpolicy_sdft\[{name}\]") as caught:
            open_trackers(["tensorboard", name], tmp_path, TrackingConfig())
        assert f"train.trackers: '{name}' is not installed" in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # refused before anything was opened


def target(text: str) -> Target:
    pair = PromptPair(Demonstration("a", (Turn("user", "why?"),), "so"), (1,), (1,), (2,))
    return Target(pair, (2,), text, "fallback", "check", None)


def test_tensorboard_gets_metrics_scores_and_rollouts_inside_the_run_directory(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {"optim": {"lr": 1e-3, "betas": (0.9, 0.95)}, "model": {"revision": None}}
    config = TrackingConfig(rollouts_every=2, num_rollouts=1)
    tracking = open_trackers(["tensorboard", "tensorboard"], tmp_path, config, options)
    assert len(tracking.trackers) == 1
    tracking.on_evaluate(0, "before", {"eval/test/score": 0.25})
    for step in (1, 2):
        tracking.on_rollouts(step, [target(f"because\nof {step}"), target("left out")])
        tracking.on_step_end(step, {"loss/nll": 1.0 / step})
        tracking.on_evaluate(step, "validation", {"eval/quick/score": 1.0})  # is among the metrics of its step
    tracking.finish()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/nll")] == [(1, 1.0), (2, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("eval/test/score")] == [(0, 0.25)]
    assert "eval/quick/score" not in events.Tags()["scalars"]
    (shown,) = events.Tensors("rollouts/text_summary")
    text = shown.tensor_proto.string_val[0].decode()
    assert shown.step == 2
    assert "because" in text
    assert "verdict: fallback" in text
    assert "left out" not in text


def test_a_tracker_that_fails_costs_a_warning(tmp_path, logged):
    class Broken:
        def start(self):
            pass

        def log(self, values, step):
            raise ConnectionError("no network")

        def finish(self):
            raise ConnectionError("still none")

    tracking = trackers.Tracking([Broken()], TrackingConfig())
    tracking.on_step_end(3, {"loss/nll": 1.0})
    tracking.finish()
    assert logged == [
        "warning: step 3: a tracker failed: no network", "warning: at the end: a tracker failed: still none",
    ]  # fmt: skip


def test_a_tracker_that_hangs_holds_nobody_up_and_is_named_at_the_end(logged):
    class Hanging:
        answers = Event()

        def start(self):
            pass

        def log(self, values, step):
            self.answers.wait(60)

        def finish(self):
            pass

    tracking = trackers.Tracking([Hanging()], TrackingConfig(), patience=0.2)
    started = time.monotonic()
    for step in range(100):
        tracking.on_step_end(step, {"loss/nll": 1.0})
    tracking.finish()
    Hanging.answers.set()
    assert time.monotonic() - started < 10
    assert logged == [
        "warning: at the end: trackers did not take everything within 0.2 s; metrics.jsonl has it all",
    ]  # fmt: skip


def test_a_tracker_that_cannot_start_ends_the_run():
    class Wrong:
        def start(self):
            raise ConnectionError("no key")

    with pytest.raises(ConnectionError, match="no key"):
        trackers.Tracking([Wrong()], TrackingConfig())


@pytest.mark.parametrize("hangs", ["start", "store_init_configuration"])
def test_a_tracker_that_does_not_start_in_time_ends_the_run_with_a_way_out(hangs):
    answers = Event()

    class Hanging:
        name = "wandb"

        def start(self):
            assert hangs != "start" or answers.wait(60)

        def store_init_configuration(self, values):
            assert answers.wait(60)

    with pytest.raises(ConfigError, match=r"wandb did not start within 0\.1 s.*Fix: "):
        trackers.Tracking([Hanging()], TrackingConfig(), {"train": {"seed": 0}}, patience=0.1)
    answers.set()


def test_a_run_sends_its_scores_and_steps(tmp_path, model_dir):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {
        "train.trackers": ["tensorboard"], "tracking.rollouts_every": 1, "train.max_steps": 2, "eval.kl_prompts": 0,
        "rollout.max_new_tokens": 4, "train.output_dir": tmp_path / "run", "eval.path": tmp_path / "rows.jsonl",
    }  # fmt: skip
    fit(load_config(write_run(tmp_path, model_dir, **options)))
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("eval/test/score")] == [0, 2]
    assert [e.step for e in events.Scalars("loss/total")] == [1, 2]
    assert [e.step for e in events.Tensors("rollouts/text_summary")] == [1, 2]


def test_wandb_goes_on_under_the_id_that_the_run_has(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = TrackingConfig(project="mine", name="first", group="g", tags=["a"], rollouts_every=1)
    ids = []
    for step in (1, 2):
        tracking = open_trackers(["wandb"], tmp_path, config, {"optim": {"lr": 1.0}})
        run = tracking.trackers[0].tracker
        ids.append(run.id)
        assert (run.project, run.name, run.group, list(run.tags)) == ("mine", "first", "g", ["a"])
        tracking.on_rollouts(step, [target("because")])
        tracking.on_step_end(step, {"loss/nll": 1.0})
        tracking.finish()
    assert ids[0] == ids[1] == json.loads((tmp_path / "trackers.json").read_text())["wandb"]


def test_mlflow_goes_on_in_the_run_that_it_made(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = TrackingConfig(project="mine", name="first", group="g", tags=["a"], rollouts_every=1)
    for step in (1, 2):
        tracking = open_trackers(["mlflow"], tmp_path, config, {"optim": {"lr": 1.0}})
        tracking.on_rollouts(step, [target("because")])
        tracking.on_step_end(step, {"loss/nll": 1.0 / step})
        tracking.finish()
    (experiment,) = mlflow.search_experiments(filter_string="name = 'mine'")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    assert (run.info.run_name, run.data.tags["group"], "a" in run.data.tags) == ("first", "g", True)
    history = client.get_metric_history(run.info.run_id, "loss/nll")
    assert [(each.step, each.value) for each in history] == [(1, 1.0), (2, 0.5)]
    assert run.data.params["optim.lr"] == "1.0"
    assert len(client.list_artifacts(run.info.run_id, "rollouts")) == 2


def test_swanlab_gets_metrics_and_rollouts_inside_the_run_directory(tmp_path, monkeypatch):
    swanlab = pytest.importorskip("swanlab")
    PartialState()  # accelerate's tracker logs, which wants it; a run has one
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    config = TrackingConfig(project="mine", name="first", group="g", tags=["a"], rollouts_every=1)
    tracking = open_trackers(["swanlab"], tmp_path, config, {"optim": {"lr": 1.0}})
    tracking.on_rollouts(1, [target("because")])
    tracking.on_step_end(1, {"loss/nll": 1.0})
    assert swanlab.config["optim.lr"] == 1.0
    tracking.finish()
    assert any((tmp_path / "swanlab").iterdir())


def test_swanlab_without_a_key_is_refused_before_any_work(tmp_path, monkeypatch):
    pytest.importorskip("swanlab")
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    monkeypatch.setenv("SWANLAB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="SWANLAB_API_KEY"):
        check_trackers(["swanlab"])


def test_wandb_without_a_key_is_refused_before_any_work(monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(type(wandb.api), "api_key", None)
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        check_trackers(["wandb"])


def test_every_offered_tracker_is_one_of_accelerate():
    tracking = pytest.importorskip("accelerate.tracking")
    assert set(trackers.NAMES) <= set(tracking.LOGGER_TYPE_TO_CLASS)


def test_nested_options_get_dotted_names():
    config = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": True}
    assert hyperparameters(config) == {"a.b.c": 1, "a.d": "[1, 2]", "e": "None", "f": True}
