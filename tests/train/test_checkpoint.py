"""Checkpoints that were cut off, are not ours, or do not fit on the disk; two runs in one directory."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tiny import say, write_run

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_jsonl
from onpolicy_sdft.train import checkpoint as module


@pytest.fixture
def options(tmp_path, model_dir):
    options = {
        "task.name": "free_form", "rollout.max_new_tokens": 6, "rollout.deterministic": True, "rollout.num_slots": 3,
        "eval.before_and_after": False, "train.batch_size": 3, "train.max_steps": 4, "train.checkpoint_steps": 1,
        "train.keep_checkpoints": 2, "train.output_dir": tmp_path / "run", "train.resume": "auto",
    }  # fmt: skip
    return write_run(tmp_path, model_dir, say(*(f"{i}" * 3 for i in range(6))), **options)


def train(options, **overrides):
    fit(load_config(options, **overrides), ["test"])


def steps(tmp_path):
    return [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]


def cut_off(folder: Path) -> None:
    path = folder / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-100])


def foreign(folder: Path) -> None:
    (folder / "state.json").write_text('{"global_step": 3}')


def flip(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


DAMAGE = {
    "a bit of the weights": (partial(flip, name="trainable.safetensors"), "trainable.safetensors has other bytes"),
    "a bit of the optimizer": (partial(flip, name="optimizer.pt"), "optimizer.pt has other bytes"),
    "cut off": (cut_off, "optimizer.pt has"),
    "foreign": (foreign, "not written by this program"),
    "no record": (lambda folder: (folder / "state.json").unlink(), "does not exist"),
    "a file is missing": (lambda folder: (folder / "ranks.pt").unlink(), "ranks.pt is missing"),
    "half a record": (lambda folder: (folder / "state.json").write_text('{"version": '), "not valid JSON"),
}


def test_a_damaged_checkpoint_is_skipped_by_name_and_the_one_before_is_taken_up(options, tmp_path, logged):
    train(options, **{"train.max_steps": 3})
    run, whole = tmp_path / "run", shutil.copytree(tmp_path / "run", tmp_path / "whole")
    for name, (damage, why) in DAMAGE.items():
        shutil.rmtree(run)
        shutil.copytree(whole, run)
        damage(run / "checkpoints" / "step-000003")
        logged.clear()
        train(options)
        said = "\n".join(logged)
        assert "step-000003 is skipped: " in said, name
        assert why in said, name
        assert "(step 2;" in said, name
        assert steps(tmp_path) == [1, 2, 3, 4], name


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew_over_its_logs(options, tmp_path):
    train(options, **{"train.max_steps": 2})
    for step in (1, 2):
        cut_off(tmp_path / "run" / "checkpoints" / f"step-00000{step}")
    with pytest.raises(RunDirectoryError, match="None of the 2 checkpoints"):
        train(options)
    assert steps(tmp_path) == [1, 2]


def test_a_full_disk_keeps_the_old_checkpoint_and_says_so(options, tmp_path, monkeypatch, logged):
    save, calls = module.torch.save, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 8:  # the second file of the third checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(module.torch, "save", full)
    with pytest.raises(RunDirectoryError, match=r"step 3 .* No space left .* step 2 stands.*resume auto"):
        train(options)
    monkeypatch.setattr(module.torch, "save", save)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000001", "step-000002"]
    train(options)
    assert any("step-000002 (step 2" in line for line in logged)
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_two_runs_in_one_directory_are_refused_and_a_killed_one_leaves_it_free(options, tmp_path):
    code = (
        "import sys, time\nfrom onpolicy_sdft.runs.directory import RunDirectory\n"
        "with RunDirectory.create(sys.argv[1]).claimed():\n    print('mine', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(RunDirectoryError, match="Another run is at work"):
            train(options)
        other.kill()
    train(options)
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert os.listdir(tmp_path / "run" / "checkpoints")
    with RunDirectory.open(tmp_path / "run").claimed():
        pass


def test_torn_checkpoints_go_before_whole_ones(options, tmp_path):
    train(options, **{"train.max_steps": 2, "train.keep_checkpoints": 1})
    checkpoints = tmp_path / "run" / "checkpoints"
    cut_off(shutil.copytree(checkpoints / "step-000002", checkpoints / "step-000099"))
    train(options, **{"train.max_steps": 3, "train.keep_checkpoints": 1})
    assert [path.name for path in checkpoints.iterdir()] == ["step-000003"]
