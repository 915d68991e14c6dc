"""Whole runs on a CUDA device; as in tests/rollout/test_engine_on_cuda.py, ``--device cpu`` rehearses them."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_run

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.errors import ModelError
from onpolicy_sdft.models import embedded
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json, read_jsonl

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]


def options(model_dir: Path, folder: Path) -> dict[str, Any]:
    write_run(
        folder, model_dir,
        **{
            "task.name": "free_form", "rollout.max_new_tokens": 10, "train.max_steps": 4, "train.checkpoint_steps": 2,
            "eval.before_and_after": False,
        },
    )  # fmt: skip
    return {"optim.lr": 0.01, "optim.warmup_steps": 1}


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / "trainable.safetensors")


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_two_steps_and_two_more_are_four(lora, device, model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product runs, maybe in a test before
    given = {**options(model_dir, tmp_path), "lora.enabled": lora}

    def run(folder: str, **more: Any) -> str:
        config = load_config(tmp_path / "config.yaml", **given, **{"train.output_dir": str(tmp_path / folder)}, **more)
        return fit(config).result.reason

    assert run("whole") == "finished"
    with monkeypatch.context() as patch:
        append = RunDirectory.append_metrics

        def stop_after_two(self: RunDirectory, record: Any) -> None:
            append(self, record)
            if record["step"] == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(RunDirectory, "append_metrics", stop_after_two)
        assert run("parts") == "SIGTERM"
    assert run("parts", **{"train.resume": "auto"}) == "finished"
    whole, parts = final_weights(tmp_path / "whole"), final_weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, atol=1e-5, rtol=1e-4)


SMALL = """
train: {max_steps: 2}
eval:
  kl_prompts: 4
  kl_max_new_tokens: 8
  sets:
    - label: list_functions
      data: {name: "embedded:list_functions", split: test, limit: 8, wording: false}
      task: {name: python_code, options: {allow_execution: true}}
      max_new_tokens: 16
"""


def test_a_whole_quickstart_trains_scores_and_exports(device, tmp_path):
    try:
        embedded.fetch("smollm2-135m-instruct")
    except ModelError as error:
        pytest.skip(f"the embedded model cannot be had: {error}")
    (tmp_path / "small.yaml").write_text(SMALL)
    command = [
        sys.executable, "-m", "onpolicy_sdft", "train", "--config", "configs/online/quickstart.yaml",
        "--config", str(tmp_path / "small.yaml"), "--train.output_dir", str(tmp_path / "run"),
    ]  # fmt: skip
    if device.type == "cpu":  # bfloat16 would take minutes
        command += ["--train.batch_size", "2", "--rollout.max_new_tokens", "16", "--model.dtype", "float32"]
        command += ["--train.precision", "fp32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    steps = [row["values"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert len(steps) == 2
    assert all(math.isfinite(each["loss/total"]) for each in steps)
    assert read_json(tmp_path / "run" / "eval" / "summary.json")["after"]["sets"][0]["n"] == 8
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").is_file()
