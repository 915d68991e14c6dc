"""Plain fine-tuning against online self-distillation: what is learned, and what is forgotten.

Both methods run through the same loop from the same config, with the same seeds and the same number of learned
tokens, and are scored on the task and on what the seed model could do before. Runs that are done are kept: start
it again after an interruption.

    python benchmarks/forgetting.py --output runs/forgetting --seeds 0 1
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from onpolicy_sdft.runs.files import read_json, read_jsonl, write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware, package_versions

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "online"
METHODS = {"sft": ROOT / "configs" / "methods" / "sft.yaml", "sdft": ROOT / "configs" / "methods" / "sdft.yaml"}


def sdft(*arguments: str | Path) -> None:
    """Run one command of the program as a user would."""
    command = [sys.executable, "-m", "onpolicy_sdft", *map(str, arguments)]
    print("$ sdft", *map(str, arguments), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def run_one(config: Path, output: Path, method: str, seed: int, extra: list[str]) -> dict[str, object]:
    """Train one method with one seed, score it, and return its row."""
    run = output / f"{method}-seed{seed}"
    if not (run / "model").is_dir():
        sdft(
            "train", "--config", config, "--config", METHODS[method], "--train.output_dir", run,
            "--train.seed", str(seed), "--train.resume", "auto", "--eval.before_and_after", "false", *extra,
        )  # fmt: skip
    if "eval" not in (read_json(run / "eval" / "summary.json") if (run / "eval" / "summary.json").is_file() else {}):
        sdft("eval", run)
    metrics = [record["values"] for record in read_jsonl(run / "metrics.jsonl")]
    return {
        "method": method,
        "seed": seed,
        "steps": len(metrics),
        "git": read_json(run / "manifest.json")["git"],
        "loss_tokens": int(metrics[-1]["train/total_loss_tokens"]),
        "mean_fallback_rate": sum(m.get("screen/fallback_rate", 0.0) for m in metrics) / len(metrics),
        **read_json(run / "eval" / "summary.json")["eval"],
    }


def score_seed(config: Path, output: Path, extra: list[str]) -> dict[str, object]:
    """Score the model before any training."""
    place = output / "seed-model"
    if not (place / "eval" / "summary.json").is_file():
        options = ["--config", str(config), "--eval.kl_prompts", "0", *extra]
        sdft("eval", "embedded:smollm2-135m-instruct", *options, "--output", place)
    return {"method": "seed model", "seed": None, "steps": 0, **read_json(place / "eval" / "summary.json")["eval"]}


def table(rows: list[dict[str, object]]) -> str:
    """Return the rows as Markdown."""
    labels = [item["label"] for item in rows[0]["sets"]]  # type: ignore[index, union-attr]
    lines = [
        "| method | seed | steps | learned tokens | " + " | ".join(labels) + " | KL(seed \\|\\| tuned), nats/token |"
    ]
    lines.append("|" + "---|" * (5 + len(labels)))
    for row in rows:
        scores = [f"{s['score']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for s in row["sets"]]  # type: ignore[union-attr]
        kl = row.get("kl")
        shown = f"{kl['mean']:.4f} [{kl['low']:.4f}, {kl['high']:.4f}]" if kl else "-"  # type: ignore[index]
        seed = "-" if row["seed"] is None else row["seed"]
        cells = [row["method"], seed, row["steps"], row.get("loss_tokens", "-"), *scores, shown]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    sizes = ", ".join(f"{item['label']} n = {item['n']}" for item in rows[0]["sets"])  # type: ignore[union-attr]
    return "\n".join(
        [*lines, "", f"Greedy answers; 95 % intervals (Wilson; bootstrap over completions for KL); {sizes}."]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIGS / "forgetting.yaml")
    parser.add_argument("--output", type=Path, help="Where the runs go (default: runs/NAME of the config).")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--results", type=Path, help="Directory for NAME.json and NAME.md.")
    options, extra = parser.parse_known_args()
    config = options.config.resolve()
    output = (options.output or ROOT / "runs" / config.stem).resolve()
    rows = [score_seed(config, output, extra)]
    for seed in options.seeds:
        rows += [run_one(config, output, method, seed, extra) for method in options.methods]
    print(table(rows))
    if options.results:
        record = {
            "command": ["benchmarks/forgetting.py", *sys.argv[1:]],
            "git": git_state(ROOT),
            "hardware": hardware(),
            "versions": package_versions(["torch", "transformers", "peft", "accelerate"]),
            "config": config.read_text(encoding="utf-8"),
            "rows": rows,
        }
        options.results.mkdir(parents=True, exist_ok=True)
        write_json_atomic(options.results / f"{config.stem}.json", json.loads(json.dumps(record)))
        write_text_atomic(options.results / f"{config.stem}.md", table(rows) + "\n")


if __name__ == "__main__":
    main()
