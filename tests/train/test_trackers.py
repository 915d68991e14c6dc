"""Trackers by name."""

import pytest

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.train import trackers
from onpolicy_sdft.train.trackers import check_trackers, flatten, open_trackers


def test_an_unknown_tracker_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"train\.trackers: 'tensorbord'.*'tensorboard'"):
        check_trackers(["tensorbord"])


def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    for name in ("wandb", "trackio"):
        with pytest.raises(ConfigError, match=rf"onpolicy_sdft\[{name}\]") as caught:
            open_trackers(["tensorboard", name], tmp_path)
        assert f"train.trackers: '{name}' is not installed" in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # refused before anything was opened


def test_no_trackers_are_no_trouble(tmp_path):
    check_trackers([])
    assert open_trackers([], tmp_path) == []


def test_other_ranks_open_none(tmp_path):
    pytest.importorskip("tensorboard")
    assert open_trackers(["tensorboard"], tmp_path, is_main_process=False) == []
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_the_metrics_inside_the_run_directory(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = {"optim": {"lr": 1e-3, "betas": (0.9, 0.95)}, "model": {"revision": None}}
    opened = open_trackers(["tensorboard", "tensorboard"], tmp_path, config)
    assert len(opened) == 1
    for step in (1, 2):
        opened[0].log({"loss/nll": 1.0 / step}, step)
    opened[0].finish()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/nll")] == [(1, 1.0), (2, 0.5)]


def test_every_offered_tracker_is_one_of_accelerate():
    tracking = pytest.importorskip("accelerate.tracking")
    assert set(trackers.NAMES) <= set(tracking.LOGGER_TYPE_TO_CLASS)


def test_nested_options_get_dotted_names():
    config = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": True}
    assert flatten(config) == {"a.b.c": 1, "a.d": "[1, 2]", "e": "None", "f": True}
