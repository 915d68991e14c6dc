"""The files that come with the package are listed, shown, copied, and found by name where there is no checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from onpolicy_sdft.cli.main import main
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.config.shipped import shipped_files

ROOT = Path(__file__).parents[2]


def test_every_config_and_launch_file_is_shipped_and_said_in_a_line(capsys):
    assert main(["configs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "launch" / "accelerate").glob("*.yaml")}
    expected |= {f"launch/{name}.sh" for name in ("multi_gpu", "multi_node", "slurm", "environment", "with_tcmalloc")}
    assert {line.split()[0] for line in lines} == expected
    assert all(len(line.split()) > 1 for line in lines)  # each says what it is


def test_a_file_is_shown_and_copied(tmp_path, capsys):
    assert main(["configs", "show", "configs/online/gsm8k.yaml"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs" / "online" / "gsm8k.yaml").read_text()
    assert main(["configs", "copy", "launch", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "launch" / "accelerate" / "zero3.yaml").is_file()
    assert main(["configs", "copy", "launch", "--output", str(tmp_path)]) == 0  # the same once more
    (tmp_path / "launch" / "slurm.sh").write_text("mine")
    assert main(["configs", "copy", "launch/slurm.sh", "--output", str(tmp_path)]) == 2
    assert "is there already, with other content" in capsys.readouterr().err
    assert (tmp_path / "launch" / "slurm.sh").read_text() == "mine"


@pytest.mark.parametrize("arguments", [["show", "configs/none.yaml"], ["copy", "configs/none"], ["show"]])
def test_a_name_that_is_not_there_is_refused(capsys, arguments):
    assert main(["configs", *arguments]) == 2
    assert "sdft configs list" in capsys.readouterr().err


def test_a_config_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "configs/online/gsm8k.yaml"
    assert load_config(name).task.name == "math_word_problem"
    (tmp_path / "configs" / "online").mkdir(parents=True)
    (tmp_path / name).write_text("task: {name: exact}\n")  # a file of that name that is here goes first
    assert load_config(name).task.name == "exact"


@pytest.mark.slow
def test_a_wheel_brings_everything_and_works_without_the_checkout(tmp_path):
    """Dependencies come from this environment: installing them would take minutes and show nothing more."""
    source = tmp_path / "source"  # a build leaves files in the folder it is made from
    for name in ("onpolicy_sdft", "configs", "launch"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=True)
    python = bare / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True, capture_output=True)
    packages = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    place = next((bare / "lib").glob("python*")) / "site-packages"
    (place / "others.pth").write_text(f"{packages}\n")  # files of .pth there are not read: no editable install is

    def sdft(*arguments: str) -> str:
        done = subprocess.run([bare / "bin" / "sdft", *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    show = [python, "-c", "import onpolicy_sdft; print(onpolicy_sdft.__file__)"]
    assert str(place) in subprocess.run(show, capture_output=True, text=True, cwd=tmp_path).stdout
    assert {line.split()[0] for line in sdft("configs", "list").splitlines()} == set(shipped_files())
    printed = sdft("train", "--config", "configs/online/gsm8k.yaml", "--print_config")
    assert yaml.safe_load(printed)["task"]["name"] == "math_word_problem"
    assert "runs, at most 1 at once" in sdft("sweep", "--config", "configs/sweep/learning_rate.yaml", "--dry_run")
    sdft("configs", "copy", "launch")
    dry = subprocess.run(
        ["bash", "launch/multi_gpu.sh", "--config", "configs/online/quickstart.yaml"], cwd=tmp_path, text=True,
        capture_output=True, env={"PATH": f"{bare / 'bin'}:/usr/bin:/bin", "DRY_RUN": "1", "NUM_GPUS": "2"},
    )  # fmt: skip
    assert "accelerate launch --config_file launch/accelerate/ddp.yaml" in dry.stdout, dry.stderr
