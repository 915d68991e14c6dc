"""One optimizer step on one and two ranks of this machine, by backend: seconds, their split, what is gathered, memory.

    python -m benchmarks.distributed --results benchmarks/results      # --only NAME ... measures those pairs again

Backends are compared with DDP in pairs that take turns step by step, each in processes of its own that idle while the
other works; ratios are taken within a round. Ranks have one thread each, one process alone has two. On CPUs, through
gloo: what moves between GPUs is another matter. Writes distributed.json and distributed.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.step.__main__ import ROOT, Contender, ratio
from onpolicy_sdft.runs.files import read_json, write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware
from onpolicy_sdft.versions import package_versions

CONFIGS = ["configs/online/quickstart.yaml"]
OVERRIDES = {
    "model.dtype": "float32", "train.precision": "fp32", "rollout.max_new_tokens": 48, "train.batch_size": 8,
    "train.micro_batch_tokens": 1024, "optim.warmup_steps": 0,
    "rollout.deterministic": True, "rollout.num_slots": 8,
}  # fmt: skip
FULL = {"lora.enabled": False, "optim.lr": 1e-6}
LONG = {**FULL, "train.batch_size": 16, "rollout.max_new_tokens": 160, "rollout.num_slots": 16}  # a longer rollout
SHARDED = {"rollout.weights": "sharded", "rollout.backend": "hf", "eval.kl_prompts": 0}
#: Pairs that take turns: (name, backend, ranks, overrides), the second compared with the first.
PAIRS: list[tuple[tuple[str, str, int, dict[str, Any]], ...]] = [
    (("ddp, LoRA", "ddp", 2, {}), ("one process, LoRA", "ddp", 1, {})),
    (("ddp, LoRA", "ddp", 2, {}), ("zero1, LoRA", "zero1", 2, {})),
    (("ddp, LoRA", "ddp", 2, {}), ("zero2, LoRA", "zero2", 2, {})),
    (("ddp, LoRA", "ddp", 2, {}), ("zero3, LoRA, replica", "zero3", 2, {})),
    (("ddp, LoRA", "ddp", 2, {}), ("zero3, LoRA, gather", "zero3", 2, {"rollout.weights": "gather"})),
    (("ddp, LoRA", "ddp", 2, {}), ("fsdp2, LoRA, replica", "fsdp2", 2, {})),
    (("zero3, LoRA, gather", "zero3", 2, {"rollout.weights": "gather"}), ("zero3, LoRA, sharded", "zero3", 2, SHARDED)),
    (("ddp, full", "ddp", 2, FULL), ("zero2, full", "zero2", 2, FULL)),
    (("ddp, full", "ddp", 2, FULL), ("zero3, full, gather", "zero3", 2, FULL)),
    (("ddp, full", "ddp", 2, FULL), ("fsdp2, full, gather", "fsdp2", 2, FULL)),
    (("ddp, full, long", "ddp", 2, LONG), ("zero3, full, gather, long", "zero3", 2, LONG)),
]
#: One contender's name, facts, commit and steps.
Measured = dict[str, Any]
COLUMNS = ("step", "rollout", "rollout_wait", "score", "learn")


def start(contender: tuple[str, str, int, dict[str, Any]], rows: int, logs: Path) -> Contender:
    """Start the ranks of a contender."""
    name, backend, ranks, overrides = contender
    given = {
        "backend": backend, "ranks": ranks, "threads": 2 // ranks, "configs": CONFIGS,
        "overrides": {**OVERRIDES, **overrides, "data.limit": rows},
    }  # fmt: skip
    log = logs / f"{name.replace(', ', '_').replace(' ', '_')}.log"
    command = [sys.executable, "-m", "benchmarks.adapters.step_ranks", json.dumps(given)]
    return Contender(command, {"OMP_NUM_THREADS": str(2 // ranks)}, log)


def run_pair(pair: tuple[Any, ...], options: argparse.Namespace) -> list[Measured]:
    """Let two contenders take turns."""
    rows = (options.rounds + 1) * max(each[3].get("train.batch_size", OVERRIDES["train.batch_size"]) for each in pair)
    found = [(contender[0], start(contender, rows, options.logs)) for contender in pair]
    for number in range(-1, options.rounds):  # the first is a warm-up
        for name, contender in found:
            step = contender.step()
            if number >= 0:
                contender.steps.append(step)
            print(f"round {number}: {name}: {step['step']:.2f} s, rollout {step['rollout']:.2f} s", flush=True)
    for _, contender in found:
        contender.close()
    facts = {
        "command": ["python -m benchmarks.distributed", *sys.argv[1:]], "git": git_state(ROOT), "hardware": hardware(),
        "overrides": OVERRIDES,
        "versions": package_versions(["torch", "transformers", "peft", "accelerate", "deepspeed"]),
    }  # fmt: skip
    return [{"name": name, **facts, **contender.facts, "steps": contender.steps} for name, contender in found]


def table(pairs: list[list[Measured]]) -> str:
    """Return the results as Markdown."""
    names = ["trainer", "n", *(f"{name} s" for name in COLUMNS), "MiB gathered a step", "peak MiB of a rank"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for pair in pairs:
        for each in pair:
            middles = [statistics.median(step[key] for step in each["steps"]) for key in COLUMNS]
            cells = [each["name"], str(len(each["steps"])), *(f"{value:.2f}" for value in middles)]
            cells += [f"{each['bytes_gathered'] / 2**20:.1f}"]
            cells += [f"{max(step['peak_mib'] for step in each['steps']):.0f}"]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| ratio, paired by round | step | rollout | learn | peak memory |", "|---|---|---|---|---|"]
    for first, second in pairs:
        found = [ratio(second["steps"], first["steps"], key) for key in ("step", "rollout", "learn", "peak_mib")]
        cells = [f"{middle:.2f} [{low:.2f}, {high:.2f}]" for middle, low, high in found]
        lines.append(f"| {second['name']} / {first['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="Second contenders of pairs, by name.")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--logs", type=Path, default=ROOT / "runs" / "distributed_logs")
    options = parser.parse_args()
    options.logs.mkdir(parents=True, exist_ok=True)
    path = None if options.results is None else options.results / "distributed.json"
    kept = read_json(path)["pairs"] if path is not None and path.is_file() else []
    by_name: dict[str, list[Measured]] = {pair[1]["name"]: pair for pair in kept}
    asked = [pair for pair in PAIRS if not options.only or pair[1][0] in options.only]
    if not asked:
        parser.error(f"--only takes some of: {', '.join(second[0] for _, second in PAIRS)}")
    for pair in asked:
        by_name[pair[1][0]] = run_pair(pair, options)
        found = [by_name[second[0]] for _, second in PAIRS if second[0] in by_name]
        if path is not None:  # after every pair: one takes minutes
            write(found, path)
    print(table(found))


def write(pairs: list[list[Measured]], path: Path) -> None:
    """Write what was measured, those pairs of earlier calls too that this one has not come to."""
    write_json_atomic(path, json.loads(json.dumps({"pairs": pairs})))
    write_text_atomic(path.with_suffix(".md"), table(pairs) + "\n")


if __name__ == "__main__":
    main()
