"""What keyed noise costs at a vocabulary of 49k, beside the generator's own exponential noise.

python benchmarks/keyed_noise.py --results benchmarks/results
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from onpolicy_sdft.rollout.noise import gumbel_noise, key_words
from onpolicy_sdft.runs.files import write_json_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware, package_versions
from onpolicy_sdft.types import NoiseKey

ROOT = Path(__file__).resolve().parents[1]
VOCAB_SIZE = 49_152


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    rows = []
    for batch_size in (1, 16, 64):
        ids = torch.arange(VOCAB_SIZE, dtype=torch.int32)[None]
        words = key_words([NoiseKey(0, 0, str(i)) for i in range(batch_size)])
        positions = torch.zeros(batch_size, dtype=torch.int64)
        buffer = torch.empty(batch_size, VOCAB_SIZE)
        ratios, ours, theirs = [], [], []
        for index in range(options.rounds + 5):
            start = time.perf_counter()
            gumbel_noise(words, positions + index, ids)
            middle = time.perf_counter()
            buffer.exponential_()
            end = time.perf_counter()
            if index >= 5:  # warm-up
                ours.append((middle - start) * 1e3)
                theirs.append((end - middle) * 1e3)
                ratios.append(ours[-1] / theirs[-1])
        row = {
            "batch_size": batch_size,
            "keyed_ms": statistics.median(ours),
            "exponential_ms": statistics.median(theirs),
            "ratio_median": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        }
        rows.append(row)
        print(row)
    if options.results:
        record = {"rounds": options.rounds, "threads": torch.get_num_threads(), "git": git_state(ROOT)}
        record |= {"hardware": hardware(), "versions": package_versions(["torch"]), "rows": rows}
        options.results.mkdir(parents=True, exist_ok=True)
        write_json_atomic(options.results / "keyed_noise.json", record)


if __name__ == "__main__":
    main()
