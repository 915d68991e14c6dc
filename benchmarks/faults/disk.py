"""Let the disk run full at one place of a run after another; make room, and start the command again.

    python -m benchmarks.faults.disk --cases 40 --results benchmarks/results

The run's directory lies on a file system of its own in memory (``tmpfs``, in a mount namespace: Linux, and the right to
make one), as large as a case says: from nothing to what an undisturbed run needs. When the run has ended, whatever it
said, there is room again and the same command goes on with ``train.resume=auto``. In the end weights, log, rollouts and
scores must be those of the undisturbed run. A case also fails if the run shows a traceback or an error without a fix.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.faults.jobs import OPTIONS, flags, write_rows
from benchmarks.faults.runs import differences, make_model, num_steps, write_result
from onpolicy_sdft.cli.main import main as sdft

PATIENCE = 300.0  # seconds: a run that takes so long hangs
_INSIDE = "SDFT_OWN_MOUNTS"  # set in the namespace


@dataclass(frozen=True)
class Case:
    """One run that met a full or a read-only disk."""

    what: str  # "full at 120 KiB", "read-only afterwards"
    ended: int  # exit code of the disturbed run
    said: str  # its last line
    reached: int  # steps in its log
    problems: tuple[str, ...]


def command(folder: Path, output: Path) -> list[str]:
    """Return the arguments of ``sdft``: a few steps with checkpoints, scores before and after, and a report."""
    own = {
        "model.name": folder / "model", "data.path": folder / "one.jsonl", "train.batch_size": 4, "train.max_steps": 6,
        "probe.num_examples": 4, "eval.path": folder / "one.jsonl", "eval.limit": 4, "eval.kl_prompts": 2,
        "rollout.max_new_tokens": 8, "train.resume": "auto", "train.output_dir": output,
    }  # fmt: skip
    return ["train", *flags(OPTIONS | own)]


def _child(arguments: list[str], answer: Any) -> None:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            code = sdft(arguments)
        except BaseException as error:  # what a user would see as a traceback
            code, text = 1, f"Traceback: {type(error).__name__}: {error}"
            said.write(text)
    answer.send((code, said.getvalue()))


def run(arguments: list[str]) -> tuple[int, str]:
    """Run a command in a process of its own, forked from this one; return its exit code and what it said."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(arguments, there))
    process.start()
    there.close()
    try:
        if not here.poll(PATIENCE):
            return 124, f"nothing within {PATIENCE:g} s"
        return here.recv()
    except EOFError:
        return 1, "the process died"
    finally:
        process.kill()
        process.join()


@contextmanager
def disk(place: Path, size: int) -> Iterator[None]:
    """A disk of so many KiB."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def problems_of(code: int, said: str) -> list[str]:
    """Say what is wrong with how a command ended on a bad disk."""
    if code not in (0, 2) or "Traceback" in said:
        return [f"ended with {code}"]
    return ["no fix said"] if code == 2 and "Fix" not in said else []


def disturbed(folder: Path, place: Path, whole: Path, size: int, *, read_only: bool) -> list[Case]:
    """Fill the disk, make it read-only for a start if asked, then make room."""
    output, cases = place / "run", []
    with disk(place, size):
        for what in [f"full at {size} KiB", *(["read-only afterwards"] if read_only else [])]:
            if what.startswith("read-only"):
                subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            code, said = run(command(folder, output))
            last = next((line for line in reversed(said.strip().splitlines()) if line), "")
            cases.append(Case(what, code, last, num_steps(output), tuple(problems_of(code, said))))
        subprocess.run(["mount", "-o", "remount,rw,size=1g", str(place)], check=True)
        again, more = run(command(folder, output))
        if again:
            problems = (f"the same command ended with {again}: {more.strip().splitlines()[-1]}",)
        else:
            problems = tuple(differences(whole, output))
        cases[-1] = replace(cases[-1], problems=cases[-1].problems + problems)
    return cases


def campaign(options: argparse.Namespace) -> list[Case]:
    """Run undisturbed once, then with every size of disk."""
    folder = Path(tempfile.mkdtemp(prefix="sdft-disk-"))
    make_model(folder / "model", options.model)
    write_rows(folder)
    place, whole = folder / "disk", folder / "whole"
    with disk(place, 1 << 20):
        code, said = run(command(folder, place / "run"))
        if code:
            raise SystemExit(f"the undisturbed run failed:\n{said}")
        needed = shutil.disk_usage(place).used // 1024
        shutil.copytree(place / "run", whole)
    print(f"an undisturbed run needs {needed} KiB", flush=True)
    cases = []
    for number in range(options.cases):
        size = max(4, int(needed * (number / options.cases) ** 3) // 4 * 4)  # most writes are small
        for each in disturbed(folder, place, whole, size, read_only=number % 4 == 1):
            cases.append(each)
            print(f"{each.what}: ended with {each.ended} after {each.reached} steps: {each.said[:300]}", flush=True)
            for problem in each.problems:
                print(f"  PROBLEM: {problem}", flush=True)
    shutil.rmtree(folder)
    return cases


def table(cases: list[Case]) -> str:
    """Return the outcome as Markdown."""
    kinds: dict[str, list[Case]] = {}
    for each in cases:
        kinds.setdefault(each.what.split()[0], []).append(each)
    lines = [
        "| disk | runs | refused with a fix | went on to the end | something lost or unclear |",
        "|---|---|---|---|---|",
    ]
    for kind, found in kinds.items():
        refused, ended = (sum(each.ended == code for each in found) for code in (2, 0))
        lines.append(f"| {kind} | {len(found)} | {refused} | {ended} | {sum(bool(each.problems) for each in found)} |")
    problems = [f"* {each.what}: {problem}" for each in cases for problem in each.problems]
    return "\n".join([*lines, *(["", *problems] if problems else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--model", type=Path, help="A model to train; unset: a tiny one that is made here.")
    parser.add_argument("--results", type=Path, help="Directory for disk.json and disk.md.")
    options = parser.parse_args()
    if _INSIDE not in os.environ:
        own_mounts = ["unshare", "--map-root-user", "--mount"]
        inside = [*own_mounts, sys.executable, "-m", "benchmarks.faults.disk", *sys.argv[1:]]
        sys.exit(subprocess.run(inside, env={**os.environ, _INSIDE: "1"}, check=False).returncode)
    started = time.monotonic()
    cases = campaign(options)
    print(table(cases))
    print(f"{time.monotonic() - started:.0f} s")
    if options.results:
        found = {"cases": [asdict(each) for each in cases]}
        write_result(options.results, "disk", "benchmarks.faults.disk", table(cases), found)
    sys.exit(any(each.problems for each in cases))


if __name__ == "__main__":
    main()
