"""Put a sweep of this folder, finished or not, into ``benchmarks/results``, with where and on what it ran.

sdft sweep --config benchmarks/recipe/own_words.yaml
python -m benchmarks.recipe runs/recipe-own_words
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from onpolicy_sdft.runs.files import read_json, write_json_atomic, write_text_atomic

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="Directory of the sweep.")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    runs = sorted(path.parent for path in options.sweep.glob("runs/*/model"))  # those that came to their end
    manifests = [read_json(run / "manifest.json") for run in runs]
    commits = Counter(manifest["git"]["commit"] for manifest in manifests)
    table = (options.sweep / "table.md").read_text(encoding="utf-8")
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
    write_text_atomic(options.results / f"{name}.md", heading + table)


if __name__ == "__main__":
    main()
