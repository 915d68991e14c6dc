"""What a manifest says of a run."""

import platform
import shutil
import subprocess
import sys

import pytest

from onpolicy_sdft.runs.files import dumps_strict, loads_strict
from onpolicy_sdft.runs.manifest import collect_manifest, git_state


def git(root, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", root, *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "onpolicy_sdft").mkdir()
    (tmp_path / "onpolicy_sdft" / "a.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_a_manifest_holds_what_it_was_given_and_is_strict_json(tmp_path):
    manifest = collect_manifest(
        command=["sdft", "train"],
        seeds={"train.seed": 3},
        data_fingerprint={"train": "ab12"},
        gpu_names=["GPU A"],
        start_time=0.0,
        source_root=tmp_path,
        extra={"num_ranks": 2},
    )
    assert loads_strict(dumps_strict(manifest)) == manifest
    assert manifest["command"] == ["sdft", "train"]
    assert manifest["seeds"] == {"train.seed": 3}
    assert manifest["data_fingerprint"] == {"train": "ab12"}
    assert manifest["started"] == "1970-01-01T00:00:00+00:00"
    assert manifest["git"] is None
    assert manifest["num_ranks"] == 2
    assert manifest["versions"]["python"] == platform.python_version()
    hardware = manifest["hardware"]
    assert hardware["gpus"] == ["GPU A"]
    assert hardware["cpu"]
    assert hardware["ram_bytes"] > 0
    assert 0 < hardware["num_usable_cores"] <= hardware["num_logical_cores"]


def test_a_checkout_gives_its_commit_and_whether_the_package_differs(checkout):
    state = git_state(checkout)
    assert state is not None
    assert len(state["commit"]) == 40
    assert not state["dirty"]
    (checkout / "runs").mkdir()
    (checkout / "runs" / "log.txt").write_text("outside the package")
    assert git_state(checkout) == state
    (checkout / "onpolicy_sdft" / "b.py").write_text("b = 1\n")
    assert git_state(checkout) == {**state, "dirty": True}


def test_a_package_inside_a_foreign_checkout_gives_no_commit(checkout):
    assert git_state(checkout / "onpolicy_sdft") is None


def test_a_checkout_without_commits_and_a_machine_without_git_give_none(tmp_path, monkeypatch):
    if shutil.which("git") is not None:
        git(tmp_path, "init", "-q")
        assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


def test_the_rooms_of_runs_and_reports_do_not_import_torch():
    code = (
        "import sys, onpolicy_sdft.runs.directory, onpolicy_sdft.runs.manifest, "
        "onpolicy_sdft.report; from onpolicy_sdft.runs.manifest import collect_manifest; "
        "collect_manifest(command=[], seeds={}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
