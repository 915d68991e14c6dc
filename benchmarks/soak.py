"""Train for many steps and watch the resident memory: of this checkout, and of an earlier one at the same time.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.soak --before /tmp/before --steps 120 --results benchmarks/results

Runs `sdft train` as a user types it, without any environment variable but the number of threads (one), for plain
fine-tuning and on-policy self-distillation, adapters and all weights. The model has the widths and the tokenizer of the
embedded one and random weights in a few layers: kernels are kept by widths and row counts, not by layers, and a step
takes a few seconds. ``--model`` runs another one, such as the embedded one itself.

Both checkouts run at the same time, a thread each, and are compared step by step. A step's cost is the seconds of
processor time that its process took, which other work on the machine hardly changes. Exits with 1 if memory grew by
more than 5 % behind step 50 (or half of the steps, where they are fewer than 100).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.models.load import resolve_source
from onpolicy_sdft.runs.files import write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware
from onpolicy_sdft.versions import package_versions

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/online/quickstart.yaml"
EMBEDDED = "embedded:smollm2-135m-instruct"
LAYERS = 2
FULL = {"lora.enabled": "false", "model.dtype": "float32", "optim.lr": 1e-5}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft, LoRA": ("sft", {}),
    "sft, full": ("sft", FULL),
    "sdft, LoRA": ("sdft", {}),
    "sdft, full": ("sdft", FULL),
}
#: Steps that take a few seconds.
SMALL = {"train.batch_size": 8, "train.micro_batch_tokens": 512, "rollout.max_new_tokens": 48}
#: What ends or delays a run and is not a step of it.
ALONE = {
    "eval.before_and_after": "false", "gate.rows": 0, "train.checkpoint_steps": 100_000,
    "train.warn_truncated_rate": 1.0, "train.warn_length_ratio": 1e6,
}  # fmt: skip
MOST_GROWTH = 0.05


def make_model(folder: Path) -> Path:
    """Save a model of the embedded one's widths with few layers and random weights."""
    source = resolve_source(load_config(**{"model.name": EMBEDDED}).model)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(source, num_hidden_layers=LAYERS)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class Run:
    """`sdft train` of one checkout, watched from outside."""

    def __init__(self, tree: Path, method: str, model: str, steps: int, output: Path, more: dict[str, str]) -> None:
        name, options = METHODS[method]
        flags = {"model.name": model, "train.output_dir": output, "train.max_steps": steps, **SMALL, **ALONE, **options}
        flags |= more
        command = [sys.executable, "-m", "onpolicy_sdft", "train", "--config", CONFIG]
        command += ["--config", f"configs/methods/{name}.yaml"]
        command += [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
        self.log, self.metrics = output.with_suffix(".log"), output / "metrics.jsonl"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=tree, env=environment, stdout=log, stderr=log)
        self.watched = psutil.Process(self.process.pid)
        self.steps: list[dict[str, float]] = []
        self._spent = 0.0

    def look(self) -> bool:
        """Take in the steps that are new; whether the run goes on."""
        goes_on = self.process.poll() is None
        text = self.metrics.read_text() if self.metrics.is_file() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # the last may be written at the moment
        new = [json.loads(line)["values"] for line in lines[len(self.steps) :]]
        if new and goes_on:
            times, memory = self.watched.cpu_times(), self.watched.memory_info().rss
            spent = times.user + times.system
            for values in new:  # more than one where steps are shorter than two looks
                self.steps.append({"cpu": (spent - self._spent) / len(new), "mib": memory / 2**20, **values})
            self._spent = spent
        return goes_on


def watch(runs: list[Run]) -> None:
    """Look at runs until they have ended.

    Raises:
        SystemExit: If one fails.
    """
    try:
        while going := [run for run in runs if run.look()]:
            time.sleep(0.05 / len(going))
    finally:
        for run in runs:
            run.process.kill()
    for run in runs:
        if run.process.returncode:
            raise SystemExit(f"{run.log}:\n{run.log.read_text()[-2000:]}")


def growth(steps: list[dict[str, float]]) -> float:
    """Return how much larger the resident memory is at the end than at step 50, or at half of fewer steps."""
    return steps[-1]["mib"] / steps[min(50, len(steps) // 2) - 1]["mib"] - 1


def ratio(after: list[float], before: list[float]) -> str:
    """Return the median of the paired ratios with a bootstrap 95 % interval."""
    pairs = np.array([a / b for a, b in zip(after, before, strict=False)])
    draws = np.random.default_rng(0).choice(pairs, (10_000, len(pairs)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return f"{np.median(pairs):.2f} [{low:.2f}, {high:.2f}]"


def table(found: dict[str, dict[str, Run]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| run | checkout | steps | resident MiB at step 5, 10, 25, 50, last | growth after step 50 | CPU s a step | "
        "rollout s | learn s | padding: rollout, learn |",
        "|" + "---|" * 9,
    ]
    for method, runs in found.items():
        for tree, run in runs.items():
            steps = run.steps
            at = [f"{steps[step - 1]['mib']:.0f}" for step in (5, 10, 25, 50) if step <= len(steps)]
            rates = [median(s.get(f"{area}/padding_rate", 0.0) for s in steps) for area in ("rollout", "train")]
            cells = [
                method, tree, str(len(steps)), ", ".join([*at, f"{steps[-1]['mib']:.0f}"]), f"{growth(steps):+.1%}",
                *(f"{median(s[key] for s in steps[1:]):.2f}"
                  for key in ("cpu", "time/rollout_seconds", "time/learn_seconds")),
                ", ".join(f"{rate:.1%}" for rate in rates),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| after / before, paired by step | CPU s | rollout s | learn s |", "|---|---|---|---|"]
    for method, runs in found.items():
        if len(runs) == 2:
            keys = ("cpu", "time/rollout_seconds", "time/learn_seconds")
            timed = [key for key in keys if all(min(s[key] for s in run.steps[1:]) > 0.01 for run in runs.values())]
            both = {
                key: ratio(*([step[key] for step in runs[tree].steps[1:]] for tree in ("after", "before")))
                for key in timed
            }
            lines.append("| " + " | ".join([method, *(both.get(key, "-") for key in keys)]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="An earlier checkout; without it only this one runs.")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--only", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument(
        "--model", help=f"As model.name; default: {LAYERS} random layers of the embedded model's widths."
    )
    parser.add_argument("--results", type=Path)
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", help="Other options of the runs.")
    options = parser.parse_args()
    more = dict(each.split("=", 1) for each in options.set)
    found: dict[str, dict[str, Run]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or str(make_model(folder / "model"))
        trees = {**({"before": options.before.resolve()} if options.before else {}), "after": ROOT}
        for number, method in enumerate(options.only):
            found[method] = {
                name: Run(tree, method, model, options.steps, folder / f"{number}-{name}", more)
                for name, tree in trees.items()
            }
            watch(list(found[method].values()))
            print(table(found), flush=True)
    if options.results:
        record = {
            "command": ["python -m benchmarks.soak", *sys.argv[1:]], "git": git_state(ROOT), "hardware": hardware(),
            "load": os.getloadavg(), "versions": package_versions(["torch", "transformers", "peft", "numba"]),
            "steps": {
                method: {name: [_short(step) for step in run.steps] for name, run in runs.items()}
                for method, runs in found.items()
            },
        }  # fmt: skip
        write_json_atomic(options.results / "soak.json", record)
        write_text_atomic(options.results / "soak.md", table(found) + "\n")
    sys.exit(any(growth(runs["after"].steps) > MOST_GROWTH for runs in found.values()))


def _short(step: dict[str, float]) -> dict[str, float]:
    keys = ("mib", "cpu", "time/rollout_seconds", "time/learn_seconds", "rollout/padding_rate", "train/padding_rate")
    return {key: round(step[key], 3) for key in keys if key in step}


if __name__ == "__main__":
    main()
