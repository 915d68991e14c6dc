"""Put a sweep of this folder, finished or not, into ``benchmarks/results``, with where and on what it ran.

Beside the sweep's own table stand each point's differences from others and from the start, question by question.

sdft sweep --config benchmarks/recipe/own_words.yaml
python -m benchmarks.recipe runs/recipe-own_words
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onpolicy_sdft.eval.intervals import mean_interval
from onpolicy_sdft.report.compose import compose
from onpolicy_sdft.report.document import Table
from onpolicy_sdft.runs.files import read_json, read_jsonl, write_json_atomic, write_text_atomic

ROOT = Path(__file__).resolve().parents[2]


def answers(run: Path, stage: str, label: str) -> np.ndarray:
    """Return whether each question of a set was answered rightly, in the order of the set."""
    records = sorted(read_jsonl(run / "eval" / f"{stage}-{label}.jsonl"), key=lambda record: record["example_id"])
    return np.array([record["correct"] for record in records], dtype=float)


def show_difference(pairs: list[tuple[np.ndarray, np.ndarray]]) -> str:
    """Return the mean difference of paired answers with its 95 % interval, resampled over the questions."""
    if not pairs:
        return "-"
    by_question = np.mean([after - before for after, before in pairs], axis=0)
    low, high = mean_interval(list(by_question))
    return f"{by_question.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def results_table(sweep: Path) -> str:
    """Return the table of a sweep's report, as Markdown."""
    blocks = (block for part in compose([sweep], sweep).parts for section in part.sections for block in section.blocks)
    table = next(block for block in blocks if isinstance(block, Table) and block.name == "points")
    return "\n\n".join([table.text.to_markdown(), table.caption, *table.notes])


def differences(sweep: Path, against: Sequence[str]) -> str:
    """Return a table of differences from some points of a sweep and from the start, over seeds that both have."""
    done = [run for run in read_json(sweep / "sweep.json")["runs"] if run["state"] == "done"]
    points: dict[str, dict[int, Path]] = {}
    for run in done:
        name = ", ".join(str(value) for value in run["point"].values())
        points.setdefault(name, {})[run["seed"]] = sweep / run["run"]
    first = next(iter(points))
    labels = sorted(
        path.stem.removeprefix("after-") for path in next(iter(points[first].values())).glob("eval/after-*")
    )
    others = against or [first]
    columns = [f"{label} - {than}" for label in labels for than in (*others, "start")]
    lines = ["| point | seeds | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|"]
    for name, runs in points.items():
        cells = []
        for label in labels:
            after = {seed: answers(run, "after", label) for seed, run in runs.items()}
            for other in others:
                base = {seed: answers(points[other][seed], "after", label) for seed in runs if seed in points[other]}
                cells.append("-" if name == other else show_difference([(after[seed], base[seed]) for seed in base]))
            cells.append(show_difference([(after[seed], answers(run, "before", label)) for seed, run in runs.items()]))
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    heading = "Paired differences by question, with 95 % bootstrap intervals over the questions:"
    return heading + "\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="Directory of the sweep.")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--against", action="append", default=[], help="Points to compare with; the first one if none.")
    options = parser.parse_args()
    runs = sorted(path.parent for path in options.sweep.glob("runs/*/model"))  # those that came to their end
    manifests = [read_json(run / "manifest.json") for run in runs]
    commits = Counter(manifest["git"]["commit"] for manifest in manifests)
    table = results_table(options.sweep)
    name = options.sweep.name.replace("-", "_")
    facts = {
        "commits": dict(commits),
        "dirty": any(manifest["git"]["dirty"] for manifest in manifests),
        "hardware": manifests[0]["hardware"],
        "versions": manifests[0]["versions"],
        "num_runs": len(manifests),
    }
    write_json_atomic(options.results / f"{name}.json", facts)
    heading = (
        f"`{name}`: {len(manifests)} runs, commit {', '.join(commit[:7] for commit in commits)}; hardware and versions "
        f"in {name}.json. A mean over the seeds that are there; a dash is a run that has not been made.\n\n"
    )
    page = heading + table + "\n\n" + differences(options.sweep, options.against)
    write_text_atomic(options.results / f"{name}.md", page)


if __name__ == "__main__":
    main()
