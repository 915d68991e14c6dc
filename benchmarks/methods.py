"""The methods side by side: what is learned, and what is forgotten.

All run through the same loop from the same config, with the same data order and the same number of learned tokens, and
are scored on the task and on what the base model could do before. With ``--lrs`` each method's learning rate is chosen
by the first seed's score on ``--tune_on``; every run of the grid is in the table. Runs that are done are kept: start it
again after an interruption.

    python benchmarks/methods.py --lrs 2e-4 5e-4 1e-3 --tune_on validation --seeds 0 1 2 --results benchmarks/results
    python benchmarks/methods.py --config configs/online/forgetting.yaml --methods sft sdft --seeds 0 1
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onpolicy_sdft.runs.files import read_json, read_jsonl, write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware
from onpolicy_sdft.versions import package_versions

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "online"
METHODS = {name: ROOT / "configs" / "methods" / f"{name}.yaml" for name in ("sft", "offline_sdft", "sdft", "sdft_kl")}


def sdft(*arguments: str | Path) -> None:
    """Run one command of the program as a user would."""
    command = [sys.executable, "-m", "onpolicy_sdft", *map(str, arguments)]
    print("$ sdft", *map(str, arguments), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def distilled(options: argparse.Namespace) -> Path:
    """Return the data set as the base model rewrote it, once for all runs."""
    place: Path = options.output / "distilled"
    if not (place / "summary.json").is_file():
        resume = ["--distill.resume", "auto"]
        sdft("distill", "--config", options.config, "--distill.output_dir", place, *resume, *options.extra)
    return place


def run_one(options: argparse.Namespace, method: str, lr: float | None, seed: int) -> dict[str, Any]:
    """Train one method with one learning rate and seed, score it, and return its row."""
    run = options.output / (f"{method}-seed{seed}" + (f"-lr{lr:g}" if lr is not None else ""))
    extra = list(options.extra)
    if lr is not None:
        extra += ["--optim.lr", f"{lr:g}"]
    if method == "offline_sdft":
        extra += ["--train.distilled", str(distilled(options))]
    stopped = run / "stopped.txt"
    if not (run / "model").is_dir() and not stopped.is_file():
        try:
            sdft(
                "train", "--config", options.config, "--config", METHODS[method], "--train.output_dir", run,
                "--train.seed", str(seed), "--train.resume", "auto", "--eval.before_and_after", "false", *extra,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            if error.returncode != 2 or not (run / "checkpoints").is_dir():
                raise
            # It trained and then refused to go on: that is a result of this learning rate.
            stopped.write_text(read_jsonl(run / "metrics.jsonl")[-1]["skipped"])
    summary = run / "eval" / "summary.json"
    if (run / "model").is_dir() and "eval" not in (read_json(summary) if summary.is_file() else {}):
        sdft("eval", run)
    metrics = [record["values"] for record in read_jsonl(run / "metrics.jsonl")]
    return {
        "method": method,
        "lr": lr,
        "seed": seed,
        "steps": len(metrics),
        "git": read_json(run / "manifest.json")["git"],
        "loss_tokens": int(metrics[-1]["train/total_loss_tokens"]),
        "mean_fallback_rate": sum(m.get("screen/fallback_rate", 0.0) for m in metrics) / len(metrics),
        "mean_drop_rate": sum(m.get("screen/drop_rate", 0.0) for m in metrics) / len(metrics),
        **(read_json(summary)["eval"] if (run / "model").is_dir() else {"stopped": stopped.read_text(), "sets": []}),
    }


def score_seed(options: argparse.Namespace) -> dict[str, Any]:
    """Score the model before any training."""
    place = options.output / "seed-model"
    if not (place / "eval" / "summary.json").is_file():
        asked = ["--config", str(options.config), "--eval.kl_prompts", "0", *options.extra]
        sdft("eval", "embedded:smollm2-135m-instruct", *asked, "--output", place)
    scores = read_json(place / "eval" / "summary.json")["eval"]
    return {"method": "base model", "lr": None, "seed": None, "steps": 0, **scores}


def score_of(row: dict[str, Any], label: str) -> float:
    """Return a row's score on a set."""
    return float(next(item["score"] for item in row["sets"] if item["label"] == label))


def compare(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """Run everything; return the rows, and the learning rate chosen for each method."""
    rows, chosen = [score_seed(options)], dict[str, float | None]()
    first, *others = options.seeds
    for method in options.methods:
        grid = [run_one(options, method, lr, first) for lr in options.lrs or [None]]
        rows += grid
        # Of equals the smaller rate: it moves the model less.
        whole = [row for row in grid if "stopped" not in row]
        best = max(whole, key=lambda row: (score_of(row, options.tune_on), -(row["lr"] or 0)) if options.lrs else 0)
        chosen[method] = best["lr"]
    for seed in others:
        rows += [run_one(options, method, chosen[method], seed) for method in options.methods]
    return rows, chosen


def interval(item: dict[str, float], digits: int = 3) -> str:
    """Show a score or a divergence with its interval."""
    middle = item["score"] if "score" in item else item["mean"]
    return f"{middle:.{digits}f} [{item['low']:.{digits}f}, {item['high']:.{digits}f}]"


def table(rows: list[dict[str, Any]], chosen: dict[str, float | None]) -> str:
    """Return every run, then each method over its seeds, as Markdown."""
    labels = [item["label"] for item in rows[0]["sets"]]
    names = [
        "method",
        "lr",
        "seed",
        "steps",
        "learned tokens",
        *labels,
        "KL(seed \\|\\| tuned), nats/token",
    ]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        kl, lr = row.get("kl"), row["lr"]
        is_chosen = row["method"] in chosen and chosen[row["method"]] == lr
        cells = [
            row["method"], "-" if lr is None else f"{lr:g}" + (" (chosen)" if is_chosen else ""),
            "-" if row["seed"] is None else row["seed"], row["steps"], row.get("loss_tokens", "-"),
            *(interval(item) for item in row["sets"]), *["-"] * (len(labels) - len(row["sets"])),
            interval(kl, 4) if kl else f"stopped: {row['stopped']}" if "stopped" in row else "-",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    names = ["method", "seeds", *labels, "KL(seed \\|\\| tuned)"]
    lines += ["", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for method, lr in chosen.items():
        mine = [row for row in rows if row["method"] == method and row["lr"] == lr]
        values = [[score_of(row, label) for row in mine] for label in labels] + [[row["kl"]["mean"] for row in mine]]
        lines.append(f"| {method} | {len(mine)} | " + " | ".join(map(over_seeds, values)) + " |")
    sizes = ", ".join(f"{item['label']} n = {item['n']}" for item in rows[0]["sets"])
    notes = (
        f"Greedy answers; 95 % intervals of a run: Wilson, bootstrap over completions for KL; {sizes}. Over seeds: "
        "mean (smallest to largest)."
    )
    return "\n".join([*lines, "", notes])


def over_seeds(values: list[float]) -> str:
    """Show the mean and the range of a few runs."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIGS / "methods.yaml")
    parser.add_argument("--output", type=Path, help="Where the runs go (default: runs/NAME of the config).")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lrs", type=float, nargs="+", help="Grid of learning rates (default: the config's alone).")
    parser.add_argument("--tune_on", default="validation", help="Label of the set that chooses among --lrs.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--results", type=Path, help="Directory for NAME.json and NAME.md.")
    options, options.extra = parser.parse_known_args()
    options.config = options.config.resolve()
    options.output = (options.output or ROOT / "runs" / options.config.stem).resolve()
    rows, chosen = compare(options)
    print(table(rows, chosen))
    if options.results:
        record = {
            "command": ["benchmarks/methods.py", *sys.argv[1:]],
            "git": git_state(ROOT),
            "hardware": hardware(),
            "versions": package_versions(["torch", "transformers", "peft", "accelerate"]),
            "config": options.config.read_text(encoding="utf-8"),
            "chosen": chosen,
            "rows": rows,
        }
        options.results.mkdir(parents=True, exist_ok=True)
        write_json_atomic(options.results / f"{options.config.stem}.json", json.loads(json.dumps(record)))
        write_text_atomic(options.results / f"{options.config.stem}.md", table(rows, chosen) + "\n")


if __name__ == "__main__":
    main()
