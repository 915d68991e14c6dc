"""One optimizer step of each method, of this project, TRL and a plain loop, side by side: seconds, split, peak memory.

    pip install --no-deps --target /tmp/trl trl==1.16.0
    python -m benchmarks.step --trl /tmp/trl --results benchmarks/results

Every trainer is a process of its own and idle while another one works; steps alternate, and ratios are taken within a
round. Prints a table and writes step_NAME.json and step_NAME.md, of the config's name.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from onpolicy_sdft.build.data import load_rows
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.models.load import resolve_source
from onpolicy_sdft.runs.files import write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware
from onpolicy_sdft.versions import package_versions

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("rollout", "score", "learn")


class Contender:
    """A trainer in a process of its own."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, cwd=ROOT,
            env={**os.environ, **environment},
        )  # fmt: skip
        self.log = log
        self.facts = self._answer()
        self.steps: list[dict[str, float]] = []

    def step(self) -> dict[str, float]:
        """Take one step."""
        assert self.process.stdin is not None
        self.process.stdin.write('{"step": true}\n')
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a trainer ended; its last words are in {self.log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def start(name: str, settings: dict[str, Any], trl: Path | None, folder: Path) -> Contender:
    """Start a contender: ``benchmarks.adapters.step_ADAPTER``, with all it needs as JSON."""
    asked = settings["contenders"][name]
    adapter = asked["adapter"]
    overrides = {**settings["overrides"], "data.limit": settings["num_rows"], **asked.get("overrides", {})}
    log = folder / f"{name.replace(' ', '_').replace(',', '')}.log"
    if adapter == "own":
        files = [settings["run_config"], f"configs/methods/{asked['method']}.yaml"]
        given: dict[str, Any] = {"configs": files, "overrides": overrides}
    else:
        config = load_config(ROOT / settings["run_config"], **overrides)
        _, loaded = load_rows(config)
        checked = "feedback" in asked  # the command has room for 128 KiB
        given = {
            "options": {}, **asked, "model": str(resolve_source(config.model)), "task": asdict(config.task),
            "rows": [
                {"prompt": d.prompt, "response": d.response, **({"fields": dict(d.fields)} if checked else {})}
                for d in loaded.demonstrations
            ],
            "num_samples": config.rollout.num_samples,
            "batch_size": config.train.batch_size * config.rollout.num_samples,
            "lr": config.optim.lr, "max_new_tokens": config.rollout.max_new_tokens,
            "teacher_prompt": settings.get("teacher_prompt"),
            "lora": {
                "r": config.lora.r, "lora_alpha": config.lora.alpha, "lora_dropout": config.lora.dropout,
                "target_modules": "all-linear", "task_type": "CAUSAL_LM",
            },
        }  # fmt: skip
    command = [sys.executable, "-m", f"benchmarks.adapters.step_{adapter}", json.dumps(given)]
    environment = {"PYTHONPATH": str(trl), "TRL_EXPERIMENTAL_SILENCE": "1"} if adapter == "trl" else {}
    return Contender(command, environment, log)


def gigaflops(step: dict[str, float], num_parameters: float) -> float:
    """Operations of a step by the usual rule over real tokens: 2 P a token read or written, 4 P learned (LoRA)."""
    student = step["num_prompt_tokens"] + step["num_tokens"]
    teacher = step["num_teacher_tokens"] + step["num_tokens"]
    # A part that is skipped still takes some microseconds.
    written = (student if step["writes_bare"] else teacher) if step["rollout"] > 0.01 else 0
    scored = teacher if step["score"] > 0.01 else 0
    return num_parameters * (2 * written + 2 * scored + 4 * student) / 1e9


def ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]], key: str) -> tuple[float, float, float]:
    """Return the median of the paired ratios with a bootstrap 95 % interval."""
    pairs = np.array([a[key] / b[key] for a, b in zip(ours, theirs, strict=True)])
    draws = np.random.default_rng(0).choice(pairs, (10_000, len(pairs)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(pairs)), float(low), float(high)


def table(groups: list[dict[str, Contender]], settings: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| trainer | n | s a step (min-max) | rollout s | score s | learn s | loss tokens | ms a loss token | GFLOP | "
        "peak MiB |",
        "|" + "---|" * 10,
    ]
    for group in groups:
        lines += [row(name, contender) for name, contender in group.items()]
    lines += [
        "",
        "| ratio, paired by round | n | seconds | seconds a loss token | peak memory |",
        "|---|---|---|---|---|",
    ]
    for ours, theirs in settings["ratios"]:
        both = [group for group in groups if ours in group and theirs in group]
        if both:
            mine = [step for group in both for step in group[ours].steps]
            others = [step for group in both for step in group[theirs].steps]
            found = [ratio(mine, others, key) for key in ("seconds", "per_token", "peak_mib")]
            cells = [f"{middle:.2f} [{low:.2f}, {high:.2f}]" for middle, low, high in found]
            lines.append(f"| {ours} / {theirs} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def row(name: str, contender: Contender) -> str:
    """Return a trainer's line: medians over its steps, the largest peak."""
    steps = contender.steps

    def middle(key: str) -> float:
        return statistics.median(step[key] for step in steps)

    seconds = [step["seconds"] for step in steps]
    work = statistics.median(gigaflops(step, contender.facts["num_parameters"]) for step in steps)
    cells = [
        name, str(len(steps)), f"{middle('seconds'):.2f} ({min(seconds):.2f}-{max(seconds):.2f})",
        *(f"{middle(part):.2f}" for part in PARTS), f"{middle('num_tokens'):.0f}", f"{middle('per_token') * 1000:.1f}",
        f"{work:.0f}", f"{max(step['peak_mib'] for step in steps):.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def run_group(names: list[str], settings: dict[str, Any], options: argparse.Namespace) -> dict[str, Contender]:
    """Let the trainers of a group take turns; return them with their steps."""
    found = {name: start(name, settings, options.trl, options.logs) for name in names}
    for number in range(-settings["warmup"], options.rounds or settings["rounds"]):
        for name, contender in found.items():
            step = contender.step()
            step["per_token"] = step["seconds"] / max(1, step["num_tokens"])
            if number >= 0:
                contender.steps.append(step)
            print(
                f"round {number}: {name}: {step['seconds']:.2f} s, {step['num_tokens']:.0f} loss tokens, "
                f"{step['peak_mib']:.0f} MiB",
                flush=True,
            )
    for contender in found.values():
        contender.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("nll.yaml"))
    parser.add_argument("--trl", type=Path, help="Directory with TRL; without it TRL's trainers are left out.")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", nargs="+", help="Contenders by name.")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--logs", type=Path, default=ROOT / "runs" / "step_logs")
    options = parser.parse_args()
    settings = yaml.safe_load(options.config.read_text())
    num_steps = (options.rounds or settings["rounds"]) + settings["warmup"]
    settings["num_rows"] = num_steps * settings["overrides"]["train.batch_size"]
    options.logs.mkdir(parents=True, exist_ok=True)
    wanted = {
        name for name, contender in settings["contenders"].items() if contender["adapter"] != "trl" or options.trl
    } & set(options.only or settings["contenders"])
    chosen = [[name for name in group if name in wanted] for group in settings["groups"]]
    groups = [run_group(names, settings, options) for names in chosen if names]
    text = table(groups, settings)
    print(text)
    if options.results:
        record = {
            "command": ["python -m benchmarks.step", *sys.argv[1:]], "settings": settings, "git": git_state(ROOT),
            "hardware": hardware(), "threads": torch.get_num_threads(), "trl": "1.16.0",
            "versions": package_versions(["torch", "transformers", "peft", "accelerate", "numba"]),
            "groups": [{name: contender.steps for name, contender in group.items()} for group in groups],
        }  # fmt: skip
        name = f"step_{options.config.stem}"
        write_json_atomic(options.results / f"{name}.json", json.loads(json.dumps(record)))
        write_text_atomic(options.results / f"{name}.md", text + "\n")


if __name__ == "__main__":
    main()
