"""The launch files as a user runs them: one real launch a backend, several machines, dry runs, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import ROOT, figures, weights
from ranks import free_port

from onpolicy_sdft.runs.files import read_json

ACCELERATE = Path(sys.executable).with_name("accelerate")
LAUNCHED = "tests/distributed/launched.py"
PROGRAM = "tests/distributed/program.py"
PLAIN = ("-m", "onpolicy_sdft")
on_cpus = pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs the plain command is right")


def launch(backend: str, config: Path, output: Path, *program: str, **environment: str) -> Any:
    command = [str(ACCELERATE), "launch", "--config_file", f"launch/accelerate/{backend}.yaml", "--num_processes", "2"]
    flags = ["train", "--config", str(config), "--train.output_dir", str(output), "--train.max_steps", "2"]
    return subprocess.run(
        [*command, *program, *flags], cwd=ROOT, capture_output=True, text=True, timeout=780, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@on_cpus
@pytest.mark.timeout(800)  # DeepSpeed compiles its Adam for zero3_offload
@pytest.mark.parametrize("backend", ["ddp", *slow("fsdp2", "zero1", "zero2", "zero3", "zero3_offload")])
def test_a_launch_file_trains_on_two_ranks_and_the_first_reports(config, tmp_path, backend):
    program = PLAIN if backend == "ddp" else (LAUNCHED,)
    done = launch(backend, config, tmp_path / "run", *program, ACCELERATE_USE_CPU=str(backend == "ddp").lower())
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(tmp_path / "run" / "manifest.json")["num_ranks"] == 2
    assert (tmp_path / "run" / "report.html").is_file()
    assert done.stdout.count("run directory") == 1


@on_cpus
@pytest.mark.slow
def test_a_program_with_objects_in_memory_trains_on_two_ranks_what_it_trains_on_one(config, tmp_path):
    done = launch("ddp", config, tmp_path / "two", PROGRAM, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(tmp_path / "two" / "manifest.json")["num_ranks"] == 2
    command = [sys.executable, PROGRAM, "train", "--config", str(config), "--train.max_steps", "2"]
    subprocess.run([*command, "--train.output_dir", str(tmp_path / "one")], cwd=ROOT, check=True, capture_output=True)
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=0, atol=1e-5)


@pytest.mark.slow
@on_cpus
@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("ddp", "2 processes were launched, but accelerate sees 1"),
        ("fsdp2", "weights would not be divided among ranks"),
        ("zero2", "2 processes were launched, but accelerate sees 1"),
    ],
)
def test_a_launch_that_would_not_do_what_it_says_is_refused(config, tmp_path, backend, said):
    done = launch(backend, config, tmp_path / "run", *PLAIN)
    assert done.returncode != 0
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def script(name: str, *flags: str, **environment: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", f"launch/{name}", *flags], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.slow
@on_cpus
def test_two_machines_of_one_rank_each_are_a_run_of_two_ranks(config, tmp_path):
    options = {"NUM_NODES": "2", "HEAD": "127.0.0.1", "NUM_GPUS": "1", "PORT": str(free_port())}
    flags = ["--config", str(config), "--train.output_dir", str(tmp_path / "run"), "--train.max_steps", "2"]
    machines = [
        script("multi_node.sh", *flags, **options, NODE_RANK=str(rank), ACCELERATE_USE_CPU="true") for rank in (0, 1)
    ]
    ends = [machine.communicate(timeout=280) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], ends[0][1][-3000:]
    assert read_json(tmp_path / "run" / "manifest.json")["num_ranks"] == 2
    assert len(figures(tmp_path / "run", "loss/total")) == 2


@pytest.mark.parametrize(
    ("name", "options", "shown"),
    [
        ("multi_gpu.sh", {"NUM_GPUS": "2", "BACKEND": "zero2"}, "zero2.yaml --num_processes 2 -m onpolicy_sdft train"),
        (
            "multi_node.sh",
            {"NUM_GPUS": "2", "NUM_NODES": "2", "NODE_RANK": "1", "HEAD": "somewhere", "BACKEND": "fsdp2"},
            "fsdp2.yaml --num_machines 2 --num_processes 4 --machine_rank 1 --main_process_ip somewhere",
        ),
        ("slurm.sh", {"NUM_GPUS": "4", "NUM_NODES": "1"}, "ddp.yaml --num_machines 1 --num_processes 4"),
    ],
)
@pytest.mark.few(1)
def test_a_dry_run_shows_the_command_and_the_plan_and_starts_nothing(config, tmp_path, name, options, shown):
    flags = ["--config", str(config), "--train.output_dir", str(tmp_path / "run")]
    out, said = script(name, *flags, **options, DRY_RUN="1").communicate(timeout=120)
    assert shown in out, said
    assert "GiB of a rank" in out
    assert not (tmp_path / "run").exists()


STUBS = {
    "srun": 'shift; SLURM_NODEID=0 exec "$@"',  # a machine of its own: this one
    "scontrol": 'if [ "$1" = show ]; then echo here; else echo "$@" >>"$SAID"; fi',
    "accelerate": 'echo "$@" >>"$SAID"; trap "exit 1" TERM; for _ in $(seq "$TENTHS"); do sleep 0.1; done',
}


@pytest.mark.parametrize(
    ("name", "options"), [("multi_gpu.sh", {}), ("multi_node.sh", {"NUM_NODES": "1", "NODE_RANK": "0", "HEAD": "here"})]
)
@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "expandable_segments:True 280"),
        ({"PYTORCH_ALLOC_CONF": "mine:1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "9"}, "mine:1 9"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "mine:1"}, " 280"),
    ],
)
def test_processes_on_gpus_start_with_segments_that_grow_unless_told_otherwise(tmp_path, name, options, own, expected):
    stub = tmp_path / "accelerate"
    stub.write_text('#!/usr/bin/env bash\necho "$PYTORCH_ALLOC_CONF $TORCH_ELASTIC_SHUTDOWN_TIMEOUT"\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NUM_GPUS": "2", **options, **own}
    done = subprocess.run(["bash", f"launch/{name}"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n"


@pytest.mark.parametrize("out_of_time", [True, False])
def test_a_slurm_job_that_is_out_of_time_passes_the_signal_on_and_is_queued_again(tmp_path, out_of_time):
    said = tmp_path / "said"
    for name, text in STUBS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = subprocess.Popen(
        ["bash", "launch/slurm.sh", "--config", "x.yaml"], cwd=ROOT,
        env={
            **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(said), "SLURM_JOB_ID": "7",
            "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "here",
            "TENTHS": "300" if out_of_time else "1",
        },
    )  # fmt: skip
    while not said.is_file():
        time.sleep(0.05)
    if out_of_time:
        time.sleep(0.2)
        job.terminate()
    assert job.wait(30) == (1 if out_of_time else 0)
    launched, *queued = said.read_text().splitlines()
    assert "--num_processes 2" in launched
    assert "--main_process_port 20007" in launched
    assert launched.endswith("train --train.resume auto --config x.yaml")
    assert queued == (["requeue 7"] if out_of_time else [])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("multi_gpu.sh", {}, "no GPU was found"),
        ("multi_gpu.sh", {"NUM_GPUS": "0"}, "no GPU was found"),
        ("multi_gpu.sh", {"NUM_GPUS": "2", "BACKEND": "zero9"}, "BACKEND=zero9 is none of ddp fsdp2 zero1"),
        ("multi_node.sh", {"NUM_GPUS": "2", "NUM_NODES": "2", "NODE_RANK": "0"}, "HEAD is unset"),
    ],
)
def test_a_launch_script_says_what_it_lacks(name, options, said):
    machine = script(name, **options)
    assert said in machine.communicate(timeout=60)[1]
    assert machine.returncode == 2
