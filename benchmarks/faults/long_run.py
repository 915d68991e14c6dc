"""Train a tiny model for many steps with checkpoints, validations and a report, and watch what grows.

    python -m benchmarks.faults.long_run --steps 2000 --results benchmarks/results

Memory, open files and the seconds of a step must stay as they are, the report must stay small and open quickly in
headless Chromium (where there is one). Exits with 1 if one of them does not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.faults.jobs import OPTIONS, SDFT, flags, write_rows
from benchmarks.faults.runs import ROOT, make_model, write_result
from onpolicy_sdft.runs.files import read_jsonl, write_json_atomic

MOST_GROWTH = 0.05  # of the memory, from a twentieth of the steps on
LARGEST_REPORT = 5 << 20
LONGEST_OPENING = 2.0  # seconds


def command(folder: Path, steps: int) -> list[str]:
    """Return the command line: a checkpoint every 50 steps, a validation every 100."""
    own = {
        "model.name": folder / "model", "data.path": folder / "one.jsonl", "train.max_steps": steps,
        "train.output_dir": folder / "run", "train.checkpoint_steps": 50, "eval.path": folder / "one.jsonl",
        "eval.limit": 16, "eval.every_steps": 100, "gate.rows": 8,
    }  # fmt: skip
    validation = folder / "validation.yaml"
    rows = {"path": str(folder / "one.jsonl"), "limit": 8}
    write_json_atomic(
        validation, {"eval": {"validation": [{"label": "same", "data": rows, "task": {"name": "exact"}}]}}
    )
    return [*SDFT, "train", "--config", str(validation), *flags(OPTIONS | own)]


def watch(folder: Path, steps: int) -> list[dict[str, float]]:
    """Run the command; return what it held after each of its steps."""
    log, metrics = folder / "log", folder / "run" / "metrics.jsonl"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command(folder, steps), cwd=ROOT, stdout=stream, stderr=stream,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    watched, held = psutil.Process(process.pid), list[dict[str, float]]()
    while process.poll() is None:
        num_steps = metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
        if num_steps > len(held):
            try:
                now = {
                    "mib": watched.memory_info().rss / 2**20,
                    "files": watched.num_fds(),
                    "threads": watched.num_threads(),
                }
            except psutil.Error:  # it has ended meanwhile
                break
            held += [now] * (num_steps - len(held))
        time.sleep(0.05)
    if process.wait():
        raise SystemExit(f"the run failed:\n{log.read_text()[-2000:]}")
    rows = read_jsonl(metrics)
    return [{**each, "seconds": row["values"]["time/step_seconds"]} for each, row in zip(held, rows, strict=False)]


def seconds_to_open(page: Path) -> float | None:
    """Return how long headless Chromium takes until a page has loaded; None where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page()
        started = time.monotonic()
        shown.goto(page.as_uri(), wait_until="load")
        seconds = time.monotonic() - started
        browser.close()
    return seconds


def outcome(held: list[dict[str, float]], report: Path) -> dict[str, Any]:
    """Return the figures: a twentieth of the steps against the last twentieth."""
    part = max(1, len(held) // 20)
    first, last = held[part : 2 * part], held[-part:]
    at = {
        name: (median(each[name] for each in first), median(each[name] for each in last))
        for name in ("mib", "files", "threads", "seconds")
    }
    return {"steps": len(held), **at, "report_bytes": report.stat().st_size, "opening_seconds": seconds_to_open(report)}


def problems_of(found: dict[str, Any]) -> list[str]:
    """Say what has grown."""
    problems = []
    for name, most in (("mib", MOST_GROWTH), ("files", 0.0), ("threads", 0.0), ("seconds", 0.25)):
        early, late = found[name]
        if late > early * (1 + most):
            problems.append(f"{name}: {early:g} -> {late:g}")
    if found["report_bytes"] > LARGEST_REPORT:
        problems.append(f"the report has {found['report_bytes']} bytes")
    if found["opening_seconds"] is not None and found["opening_seconds"] > LONGEST_OPENING:
        problems.append(f"the report takes {found['opening_seconds']:.1f} s to open")
    return problems


def table(found: dict[str, Any], problems: list[str]) -> str:
    """Return the figures as Markdown."""
    opening = "no Chromium here" if found["opening_seconds"] is None else f"{found['opening_seconds']:.2f} s"
    lines = ["| figure | early | at the end |", "|---|---|---|"]
    for name, text in (
        ("mib", "resident MiB"),
        ("files", "open files"),
        ("threads", "threads"),
        ("seconds", "seconds a step"),
    ):
        lines.append(f"| {text} | {found[name][0]:.3g} | {found[name][1]:.3g} |")
    lines += [f"| report, MiB | | {found['report_bytes'] / 2**20:.2f} |", f"| report, opened in | | {opening} |", ""]
    lines.append(
        f"{found['steps']} steps of a tiny model on one thread; medians of the second and the last twentieth of them. "
        + ("GROWN: " + "; ".join(problems) if problems else "Nothing has grown.")
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--model", type=Path, help="A model to train; unset: a tiny one that is made here.")
    parser.add_argument("--results", type=Path, help="Directory for long_run.json and long_run.md.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sdft-long-") as name:
        folder = Path(name)
        make_model(folder / "model", options.model)
        write_rows(folder)
        found = outcome(watch(folder, options.steps), folder / "run" / "report.html")
    problems = problems_of(found)
    print(table(found, problems))
    if options.results:
        write_result(options.results, "long_run", "benchmarks.faults.long_run", table(found, problems), found)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
