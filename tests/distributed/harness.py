"""Start jobs on several ranks of this machine and read what they left."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny import WORDS, questions, write_run

from onpolicy_sdft.runs.files import read_jsonl

ROOT = Path(__file__).parents[2]
RANKS = Path(__file__).with_name("ranks.py")
AVERAGED = {
    "rollout.prompt": "student", "objective.name": "reverse_kl", "teacher.weights": "ema", "teacher.half_life": 2.0,
    "rollout.num_samples": 2, "objective.anchor_kl": 0.1,
}  # fmt: skip


def write_config(folder: Path, model: Path) -> Path:
    """Write rows of unlike lengths and a config over them."""
    rows = [(f"say {word} " + "x" * 3 * i, word * i or "-") for i, word in enumerate(WORDS)]
    options = {
        "lora.alpha": 8, "rollout.max_new_tokens": 12, "rollout.deterministic": True, "rollout.num_slots": 4,
        "optim.lr": 0.01, "optim.warmup_steps": 0, "optim.max_grad_norm": 0.5, "train.batch_size": 5,
        "train.max_steps": 5, "train.checkpoint_steps": 3, "train.micro_batch_tokens": 120,
        "train.rollout_samples": 100, "eval.kl_prompts": 3, "eval.kl_max_new_tokens": 6,
        "eval.sets": [questions(folder)],
    }  # fmt: skip
    return write_run(folder, model, rows, **options)


def job(num_ranks: int, config: Path, output: Path, *, backend: str = "ddp", more: Any = None, **overrides: Any) -> Any:
    """Describe a job for the ranks."""
    return {
        "num_ranks": num_ranks, "backend": backend, "files": [str(config)],
        "overrides": {"train.output_dir": str(output), **overrides}, **(more or {}),
    }  # fmt: skip


@dataclass(slots=True)
class _Server:
    """The process that has imported everything and trained once: starting it takes ten seconds, a job of it two."""

    process: subprocess.Popen[str]

    @staticmethod
    @cache
    def started() -> _Server:
        process = subprocess.Popen(
            [sys.executable, str(RANKS)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            start_new_session=True,
        )  # fmt: skip
        atexit.register(process.kill)
        return _Server(process)

    def ask(self, request: Any, timeout: float) -> int:
        """Return the exit code of a request; a hang ends the server with all its ranks."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            os.killpg(self.process.pid, signal.SIGKILL)
            _Server.started.cache_clear()
            raise subprocess.TimeoutExpired(json.dumps(request["jobs"]), timeout)
        answer = self.process.stdout.readline()
        if not answer:
            _Server.started.cache_clear()
            raise RuntimeError("the process that starts the ranks has ended; what it wrote stands above")
        return int(answer)


def run_all(*jobs: Any, timeout: float = 300) -> Any:
    """Run jobs one after another, up to the first that fails; return what was printed, and the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder) / name) for name in ("output", "errors")}
        code = _Server.started().ask({"jobs": jobs, **files}, timeout)
        printed = (Path(name).read_text(errors="replace") for name in files.values())
        return subprocess.CompletedProcess([], code, *printed)


def run(num_ranks: int, config: Path, output: Path, more: Any = None, **overrides: Any) -> Any:
    """Run one job under DDP."""
    return run_all(job(num_ranks, config, output, more=more, **overrides))


def succeed(*arguments: Any, **overrides: Any) -> None:
    """Run one job under DDP that must not fail."""
    done = run(*arguments, **overrides)
    assert done.returncode == 0, done.stderr[-3000:]


def figures(output: Path, *names: str) -> torch.Tensor:
    """Return metrics by step: [steps, names]."""
    rows = read_jsonl(output / "metrics.jsonl")
    return torch.tensor([[row["values"][name] for name in names] for row in rows], dtype=torch.float64)


def tokens(output: Path) -> list[tuple[Any, ...]]:
    """Return what was written, by step and example."""
    return [(row["step"], row["example_id"], row["target"]) for row in read_jsonl(output / "rollouts.jsonl")]


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Return the trained weights of the newest checkpoint."""
    newest = sorted((output / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "trainable.safetensors")
