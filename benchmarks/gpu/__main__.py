"""The check of everything that only a GPU can show, in one command of at most seven minutes.

    python -m benchmarks.gpu check                          # on a machine with a CUDA device
    python -m benchmarks.gpu check --rehearse               # the same code at tiny sizes on a CPU, in two minutes
    python -m benchmarks.gpu check --parts correct,speed    # some parts; those in the folder already are kept
    python -m benchmarks.gpu prepare                        # what a machine without a network needs; see README.md

Parts run in processes of their own, by worth. Writes check.json and check.md after every one.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import time
import traceback
from pathlib import Path

import psutil
import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.prepare import prepare, unpack
from benchmarks.gpu.runner import Check, Part
from onpolicy_sdft import log
from onpolicy_sdft.runs.manifest import git_state, hardware

ROOT = Path(__file__).resolve().parents[2]
#: The longest each part may take, by worth.
SECONDS = {"environment": 45, "correct": 130, "speed": 130, "ragged": 50, "step": 160, "kernels": 60}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="run the parts and write the tables")
    check.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    check.add_argument("--out", type=Path, help="default: $OUT, else benchmarks/results/gpu/CARD-COMMIT")
    check.add_argument("--parts", default=",".join(SECONDS), help="names, with commas between")
    check.add_argument("--minutes", type=float, default=7.0, help="all the time there is")
    check.add_argument("--commit", help="where the checkout has no git; default: what git says")
    part = commands.add_parser("part", help="run one part in this process")
    part.add_argument("name", choices=SECONDS)
    part.add_argument("file", type=Path)
    part.add_argument("--seconds", type=float, required=True)
    part.add_argument("--rehearse", action="store_true")
    pack = commands.add_parser("prepare", help="collect wheels and the embedded model, print the calls to send")
    pack.add_argument("--folder", type=Path, default=ROOT / ".lease")
    open_ = commands.add_parser("unpack", help="on the lent machine: join and convert the embedded model")
    open_.add_argument("pieces", type=Path)
    options = parser.parse_args()
    log.show()  # what the engine says of slots and of steps that cannot be captured belongs to the log of a part
    run = {"check": run_check, "part": run_part, "prepare": lambda o: prepare(o.folder, ROOT)}
    run.get(options.command, lambda o: unpack(o.pieces))(options)


def run_check(options: argparse.Namespace) -> None:
    """Run the parts that were asked for."""
    if not options.rehearse and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu check: there is no CUDA device. Fix: --rehearse runs tiny sizes on the CPU.")
    wanted = options.parts.split(",")
    unknown = sorted(set(wanted) - set(SECONDS))
    if unknown:
        raise SystemExit(f"benchmarks.gpu check: no part {', '.join(unknown)}. Fix: --parts of {', '.join(SECONDS)}.")
    card = "CPU, rehearsed" if options.rehearse else torch.cuda.get_device_name()
    state = git_state(ROOT) or {"commit": "unknown", "dirty": False}
    commit = options.commit or state["commit"]
    folder = re.sub(r"[^A-Za-z0-9]+", "-", card).strip("-")
    out = options.out or os.environ.get("OUT") or ROOT / "benchmarks" / "results" / "gpu" / f"{folder}-{commit[:10]}"
    machine = hardware()
    facts = {
        "card": card, "commit": commit, "package_differs_from_it": state["dirty"],
        "date": time.strftime("%Y-%m-%d"), "processor": machine["cpu"], "cores": machine["num_usable_cores"],
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
    }  # fmt: skip

    def part(name: str) -> Part:
        def command(file: Path, seconds: float) -> list[str]:
            flags = ["--rehearse"] if options.rehearse else []
            return [sys.executable, "-m", "benchmarks.gpu", "part", name, str(file), "--seconds", str(seconds), *flags]

        return Part(name, SECONDS[name], command)

    os.chdir(ROOT)  # configs are named from here
    age = time.time() - psutil.Process().create_time()  # imports count too
    found = Check(Path(out), facts, 60 * options.minutes - age)
    found.run([part(name) for name in SECONDS if name in wanted])
    print((found.out / "check.md").read_text())


def run_part(options: argparse.Namespace) -> None:
    """Run one part; an error is written beside its figures."""
    bench = Bench(options.file, options.seconds, options.rehearse)
    try:
        importlib.import_module(f"benchmarks.gpu.parts.{options.name}").run(bench)
    except Exception:
        bench.write(traceback.format_exc())
        raise
    bench.write()


if __name__ == "__main__":
    main()
