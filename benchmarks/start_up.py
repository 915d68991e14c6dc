"""Time what a run does before its first step, by the number of its rows.

    python -m benchmarks.start_up --rows 64 200000 --workers 1 2 --results benchmarks/results

Runs `sdft train` as a user types it for one step, on a file of short rows (or of those of ``--data``, again and again,
each with a number before its prompt), with a small random model of the embedded one's tokenizer. Seconds are those
until the first step is done, at the first start and once more (token ids are read from the cache then); memory is the
largest that the process and its workers held together, shared pages counted once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.soak import ALONE, ROOT, SMALL, make_model
from onpolicy_sdft.runs.files import write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware
from onpolicy_sdft.versions import package_versions

METHODS = ("sft", "sdft")
#: Common words; a short row asks in 20 of them and answers in 40.
TEXT = (
    "the of and to in is you that it he was for on are as with his they I at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could"
)


def short_rows() -> Iterator[dict[str, str]]:
    draw, words = random.Random(0), TEXT.split()
    while True:
        yield {"prompt": " ".join(draw.choices(words, k=20)) + "?", "response": " ".join(draw.choices(words, k=40))}


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(itertools.cycle(rows)):
        yield {**row, "prompt": f"{number}. {row['prompt']}"}


def held(process: psutil.Process) -> int:
    """Return the bytes of a process and its children, shared pages counted once."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_full_info().pss
        except psutil.Error:  # it has ended
            continue
    return total


def start(method: str, data: Path, model: Path, output: Path, workers: int) -> dict[str, float]:
    """Run one step and return the seconds and the MiB that it took to get there."""
    flags = {
        **SMALL, **ALONE, "model.name": model, "data.path": data, "data.num_workers": workers,
        "train.output_dir": output, "train.max_steps": 1, "probe.num_examples": 0,
    }  # fmt: skip
    command = [sys.executable, "-m", "onpolicy_sdft", "train", "--config", f"configs/methods/{method}.yaml"]
    command += [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    log, metrics, began, most = output.with_suffix(".log"), output / "metrics.jsonl", time.perf_counter(), 0
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(output.parent)},
            stdout=file,
            stderr=file,
        )
    try:
        while not (metrics.is_file() and metrics.stat().st_size):
            if process.poll() is not None:
                raise SystemExit(f"{log}:\n{log.read_text()[-2000:]}")
            most = max(most, held(psutil.Process(process.pid)))
            time.sleep(0.5)
        return {"seconds": time.perf_counter() - began, "mib": most / 2**20}
    finally:
        process.kill()
        process.wait()


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "| method | rows | workers | start | s until the first step is done | largest memory, MiB |",
        "|" + "---|" * 6,
    ]
    for each in found:
        cells = [each["method"], f"{each['rows']:,}", str(each["workers"]), each["start"]]
        lines.append("| " + " | ".join([*cells, f"{each['seconds']:.0f}", f"{each['mib']:.0f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[64, 200_000])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--only", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--data", type=Path, help="JSON Lines of prompt and response; default: made rows of 60 words.")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--name", default="start_up", help="Of the files under --results.")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model")
        for number in options.rows:
            data = folder / f"{number}.jsonl"
            rows = rows_of(options.data) if options.data else short_rows()
            data.write_text("".join(json.dumps(row) + "\n" for row in itertools.islice(rows, number)), encoding="utf-8")
            for method, workers in itertools.product(options.only, options.workers):
                for time_of_start in ("first", "again"):
                    home = folder / f"{method}-{number}-{workers}"  # with a cache of its own
                    home.mkdir(exist_ok=True)
                    took = start(method, data, model, home / time_of_start, workers)
                    facts = {"method": method, "rows": number, "workers": workers, "start": time_of_start}
                    found.append({**facts, **took})
                    print(table(found[-1:]).splitlines()[-1], flush=True)
    if options.results:
        record = {
            "command": ["python -m benchmarks.start_up", *sys.argv[1:]], "git": git_state(ROOT),
            "hardware": hardware(), "load": os.getloadavg(),
            "versions": package_versions(["torch", "transformers", "tokenizers"]), "runs": found,
        }  # fmt: skip
        write_json_atomic(options.results / f"{options.name}.json", record)
        write_text_atomic(options.results / f"{options.name}.md", table(found) + "\n")


if __name__ == "__main__":
    main()
