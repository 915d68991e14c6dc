"""Making, opening and resuming run directories."""

import pytest

from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.runs.directory import ENTRIES, RunDirectory
from onpolicy_sdft.runs.files import read_jsonl


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "runs" / "a")


def steps(path):
    return [record["step"] for record in read_jsonl(path)]


def test_every_path_lies_inside_the_run(run):
    names = {
        run.config_path: "config.yaml",
        run.manifest_path: "manifest.json",
        run.metrics_path: "metrics.jsonl",
        run.rollouts_path: "rollouts.jsonl",
        run.eval_summary_path: "eval/summary.json",
        run.eval_records_path("before", "function calls"): "eval/before-function calls.jsonl",
        run.checkpoint_path(50): "checkpoints/step-000050",
        run.best_path: "best",
        run.model_path: "model",
        run.report_path: "report.html",
        run.plots_path: "plots",
    }
    assert {str(path.relative_to(run.path)): name for path, name in names.items()} == {
        name: name for name in names.values()
    }


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_directory_with_any_part_of_another_run_is_refused_with_both_ways_out(entry, run):
    (run.path / entry).mkdir()
    with pytest.raises(RunDirectoryError) as caught:
        RunDirectory.create(run.path)
    message = str(caught.value)
    assert str(run.path) in message
    assert entry in message
    assert "--train.resume auto" in message
    assert "another train.output_dir" in message


def test_resuming_may_use_a_directory_that_holds_a_run_or_none(run, tmp_path):
    run.append_metrics({"step": 1})
    assert RunDirectory.create(run.path, resume=True) == run
    assert steps(run.metrics_path) == [1]
    assert RunDirectory.create(tmp_path / "fresh", resume=True).path.is_dir()


def test_an_empty_directory_may_be_used_twice(run):
    assert RunDirectory.create(run.path) == run


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunDirectoryError, match="file of that name is in the way"):
            RunDirectory.create(path)


def test_opening_names_what_is_missing(run, tmp_path):
    with pytest.raises(RunDirectoryError, match="no such directory"):
        RunDirectory.open(tmp_path / "nowhere")
    with pytest.raises(RunDirectoryError, match=r"holds none of config\.yaml"):
        RunDirectory.open(run.path)
    run.config_path.touch()
    assert RunDirectory.open(str(run.path), require=("config.yaml",)) == run
    with pytest.raises(RunDirectoryError, match=r"lacks model, best \(it holds config\.yaml\)"):
        RunDirectory.open(run.path, require=("model", "config.yaml", "best"))


@pytest.mark.parametrize("label", ["", "a/b", "..\\x", "a\nb", "a:b"])
def test_a_label_that_cannot_be_a_file_name_is_refused(label, run):
    with pytest.raises(ConfigError, match=r"eval\.sets label"):
        run.eval_records_path("before", label)


def test_checkpoints_are_listed_by_number_and_half_written_ones_are_not(run):
    assert run.checkpoint_steps() == []
    for name in ("step-000100", "step-000050", "step-1000000", ".step-000150.tmp", "step-x"):
        (run.checkpoints_path / name).mkdir(parents=True)
    assert run.checkpoint_steps() == [50, 100, 1_000_000]
    assert run.checkpoint_path(1_000_000).name == "step-1000000"


def test_resuming_drops_what_was_logged_after_the_checkpoint(run):
    for step in range(1, 6):
        run.append_metrics({"step": step, "values": {}})
        run.append_rollouts([{"step": step, "example_id": e} for e in "ab"])
    assert run.truncate_after_step(3) == 2 + 4
    assert steps(run.metrics_path) == [1, 2, 3]
    assert steps(run.rollouts_path) == [1, 1, 2, 2, 3, 3]
    run.append_metrics({"step": 4})
    assert steps(run.metrics_path) == [1, 2, 3, 4]


def test_resuming_drops_a_torn_line_and_keeps_the_bytes_of_the_others(run):
    kept = b'{"step":1,  "values": {"a": 1.50}}\n'
    run.metrics_path.write_bytes(kept + b'{"step": 2, "val')
    assert run.truncate_after_step(2) == 0
    assert run.metrics_path.read_bytes() == kept


def test_resuming_leaves_a_log_alone_that_has_nothing_to_drop(run):
    run.append_metrics({"step": 1})
    before = run.metrics_path.stat().st_ino
    assert run.truncate_after_step(1) == 0
    assert run.metrics_path.stat().st_ino == before
    assert not run.rollouts_path.exists()


def test_resuming_from_the_start_empties_the_logs(run):
    run.append_metrics({"step": 1})
    assert run.truncate_after_step(0) == 1
    assert read_jsonl(run.metrics_path) == []


def test_a_line_without_a_step_stops_the_resume_and_changes_nothing(run):
    content = b'{"step": 1}\n{"stop": 2}\n'
    run.metrics_path.write_bytes(content)
    with pytest.raises(RunDirectoryError, match="record 2 has no step"):
        run.truncate_after_step(0)
    assert run.metrics_path.read_bytes() == content


def test_what_a_kill_left_between_two_renames_is_put_back(tmp_path):
    run = RunDirectory.create(tmp_path / "run")

    def folder(path, text):
        path.mkdir(parents=True)
        (path / "state.json").write_text(text)

    folder(run.checkpoints_path / ".old-step-000004", "the only one")  # the new one was about to take its place
    folder(run.checkpoints_path / ".tmp-step-000004", "new")
    folder(run.checkpoints_path / "step-000006", "new")
    folder(run.checkpoints_path / ".old-step-000006", "old")
    folder(run.path / ".old-best", "the best weights")
    folder(run.path / ".tmp-model", "half")
    with run.claimed():
        assert run.checkpoint_steps() == [4, 6]
    left = {path.parent.name: path.read_text() for path in run.path.rglob("state.json")}
    assert left == {"step-000004": "the only one", "step-000006": "new", "best": "the best weights"}
