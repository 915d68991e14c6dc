"""Kill commands again and again, at random moments and inside what they do, and compare what they reach.

    python -m benchmarks.faults.kills --kills 100 --ranks 2 --results benchmarks/results

A run on several ranks, a sequence of tasks, a sweep and a distillation are struck in turn: anywhere, or while a rank is
inside a rollout, a backward pass, a checkpoint's write, an evaluation, an export, or the hand-over from one task to the
next. One rank, all of them or the launcher is killed (SIGKILL), or the launcher is asked to stop (SIGTERM, as a
scheduler does). Then the same command starts again. In the end weights, log, rollouts, scores and tables must be those
of an undisturbed command, bit for bit. Prints what was killed, where it hit and what it cost; exits with 1 if anything
was lost.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median

import psutil

from benchmarks.faults import jobs
from benchmarks.faults.runs import ROOT, make_model, write_result
from onpolicy_sdft.runs.directory import RunDirectory

KINDS = ("one rank, SIGKILL", "all, SIGKILL", "launcher, SIGKILL", "launcher, SIGTERM")
PATIENCE = 300.0  # seconds: a command that shows nothing for so long hangs, and that is a failure


@dataclass(frozen=True)
class Kill:
    """One kill of one start of a job."""

    job: str
    kind: str
    phase: str  # "anywhere", or inside what it struck
    inside: list[str]  # what the processes were inside when it struck
    step: int  # how far the job was


@dataclass
class Outcome:
    """What a job went through."""

    kills: list[Kill] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    num_runs: int = 0
    seconds_undisturbed: float = 0.0
    seconds: float = 0.0  # of all disturbed runs, whole


@dataclass(frozen=True)
class Campaign:
    """Strikes one job."""

    job: jobs.Job
    folder: Path
    draw: random.Random
    longest: float  # a start lives for at most so long after it has shown a step, in seconds

    @property
    def marks(self) -> Path:
        return self.folder / "marks"

    def start(self, output: Path) -> subprocess.Popen[bytes]:
        """Start the command in a process group of its own."""
        shutil.rmtree(self.marks, ignore_errors=True)
        self.marks.mkdir()
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "SDFT_MARKS": str(self.marks),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "marks"), str(ROOT)]),
        }  # fmt: skip
        with output.with_name(f"{output.name}.log").open("ab") as log:
            return subprocess.Popen(
                self.job.command(output), cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def inside(self) -> list[str]:
        """What processes are inside at this moment."""
        return sorted({path.name.partition(".")[0] for path in self.marks.iterdir()})

    def run(self, num_kills: int) -> Outcome:
        """Run undisturbed once, then disturbed until there were enough kills."""
        outcome, whole = Outcome(), self.folder / f"{self.job.name}-whole"
        shutil.rmtree(whole, ignore_errors=True)
        started = time.monotonic()
        if self.start(whole).wait():
            raise SystemExit(f"the undisturbed {self.job.name} failed; see {whole}.log")
        outcome.seconds_undisturbed = time.monotonic() - started
        phases = cycle(("anywhere", *self.job.phases))
        while len(outcome.kills) < num_kills:
            output = self.folder / f"{self.job.name}-{outcome.num_runs}"
            shutil.rmtree(output, ignore_errors=True)
            outcome.num_runs += 1
            started = time.monotonic()
            while len(outcome.kills) < num_kills and (kill := self._disturb(output, next(phases))):
                outcome.kills.append(kill)
                print(f"{kill.job}, step {kill.step}: {kill.kind}, {kill.phase} {kill.inside}", flush=True)
            if not _has_ended(output) and self.start(output).wait():
                outcome.lost.append(f"{output.name}: the last start failed; see {output}.log")
                continue
            outcome.seconds += time.monotonic() - started
            outcome.lost += [f"{output.name}: {text}" for text in self.job.compare(whole, output)]
        return outcome

    def _disturb(self, output: Path, phase: str) -> Kill | None:
        """Start the command and kill it; None where it ended by itself before."""
        before = self.job.steps(output)
        process = self.start(output)
        live = self._wait(
            process, lambda: self.job.steps(output) > before or (phase != "anywhere" and phase in self.inside())
        )
        if live and phase == "anywhere":
            time.sleep(self.draw.uniform(0, self.longest))
        elif live:
            live = self._wait(process, lambda: phase in self.inside())
        kinds = [kind for kind in KINDS if self.job.num_ranks > 1 or not kind.startswith("one rank")]
        kind = self.draw.choice(kinds if phase == "anywhere" else [each for each in kinds if "SIGKILL" in each])
        inside, step = self.inside(), self.job.steps(output)
        if not live or process.poll() is not None or not _kill(process, kind, self.draw):
            if process.wait():
                raise SystemExit(f"{self.job.name} ended with {process.returncode} by itself; see {output}.log")
            output.with_name(f"{output.name}.ended").touch()
            return None
        if kind == "launcher, SIGTERM" and self.job.name == "training" and not _saved_its_last_step(self.job, output):
            raise SystemExit(f"{kind}: the run stopped without saving its last step; see {output}.log")
        return Kill(self.job.name, kind, phase, inside, step)

    def _wait(self, process: subprocess.Popen[bytes], comes: Callable[[], bool]) -> bool:
        """Wait for a moment; False where the command ended before."""
        end = time.monotonic() + PATIENCE
        while not comes():
            if process.poll() is not None:
                return False
            if time.monotonic() > end:
                os.killpg(process.pid, signal.SIGKILL)
                raise SystemExit(f"{self.job.name} showed nothing within {PATIENCE:g} s; see the logs in {self.folder}")
            time.sleep(0.001)
        return True


def _has_ended(output: Path) -> bool:
    mark = output.with_name(f"{output.name}.ended")
    ended = mark.exists()
    mark.unlink(missing_ok=True)
    return ended


def _saved_its_last_step(job: jobs.Job, output: Path) -> bool:
    return job.steps(output) == (RunDirectory(output).checkpoint_steps() or [0])[-1]


def _kill(process: subprocess.Popen[bytes], kind: str, draw: random.Random) -> bool:
    """Kill what the kind says, and wait until nothing of the command is left; False where it had ended before."""
    with suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(process.pid)
        whole = launcher.children(recursive=True)
        if kind == "one rank, SIGKILL":
            ranks = [each for each in whole if "train" in each.cmdline() and "launch" not in each.cmdline()]
            draw.choice(ranks or [launcher]).kill()
        elif kind == "all, SIGKILL":
            for each in (*whole, launcher):  # ranks have process groups of their own
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        elif kind == "launcher, SIGKILL":
            launcher.kill()
            time.sleep(draw.random())
            for each in whole:  # what a dead launcher leaves behind is the scheduler's to clear away
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        else:
            process.terminate()  # runs finish their step and save
        try:
            process.wait(PATIENCE)
            psutil.wait_procs(whole, PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise SystemExit(f"the command did not end within {PATIENCE:g} s after: {kind}") from None
        return process.returncode != 0 or kind != "launcher, SIGTERM"
    return False


def table(outcomes: dict[str, Outcome]) -> str:
    """Return the outcomes as Markdown."""
    lines = [
        "| job | kills | runs | struck inside | lost | undisturbed, s | a kill costs, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, outcome in outcomes.items():
        phases = sorted({kill.phase for kill in outcome.kills} - {"anywhere"})
        inside = ", ".join(f"{phase} {sum(phase in kill.inside for kill in outcome.kills)}" for phase in phases)
        cost = (outcome.seconds - outcome.num_runs * outcome.seconds_undisturbed) / max(1, len(outcome.kills))
        lines.append(
            f"| {name} | {len(outcome.kills)} | {outcome.num_runs} | {inside} | {'; '.join(outcome.lost) or 'nothing'} "
            f"| {outcome.seconds_undisturbed:.0f} | {cost:.1f} |"
        )
    kills = [kill for outcome in outcomes.values() for kill in outcome.kills]
    kinds = ", ".join(f"{kind}: {sum(kill.kind == kind for kill in kills)}" for kind in KINDS)
    steps = median(kill.step for kill in kills) if kills else 0
    lines += [
        "",
        f"{len(kills)} kills ({kinds}), at step {steps:g} in the middle. A kill costs what a start costs, and the "
        "steps since the last checkpoint (one every 2 steps).",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="Of all jobs together; the run gets 3 of 5.")
    parser.add_argument("--jobs", nargs="+", default=["training", "sequence", "sweep", "distillation"])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--launch", default="launch/accelerate/ddp.yaml")
    parser.add_argument(
        "--longest", type=float, default=4.0, help="Longest a start lives after its first step, seconds."
    )
    parser.add_argument("--model", type=Path, help="A model to train; unset: a tiny one that is made here.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "faults")
    parser.add_argument("--results", type=Path, help="Directory for NAME.json and NAME.md.")
    parser.add_argument("--name", default="faults", help="Of these two files.")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / "model", options.model)
    jobs.write_rows(folder)
    made = {
        "training": lambda: jobs.training(folder, options.ranks, options.launch),
        "sequence": lambda: jobs.sequence(folder),
        "sweep": lambda: jobs.sweep(folder),
        "distillation": lambda: jobs.distillation(folder),
    }
    shares = {name: 6 if name == "training" else 4 / 3 for name in options.jobs}
    counts = {name: max(1, int(options.kills * share / sum(shares.values()))) for name, share in shares.items()}
    counts[options.jobs[0]] += max(0, options.kills - sum(counts.values()))  # what rounding left
    outcomes: dict[str, Outcome] = {}
    for name, num_kills in counts.items():
        campaign = Campaign(made[name](), folder, random.Random(options.seed), options.longest)
        outcomes[name] = campaign.run(num_kills)
    print(table(outcomes))
    if options.results:
        found = {"jobs": {name: asdict(outcome) for name, outcome in outcomes.items()}}
        write_result(options.results, options.name, "benchmarks.faults.kills", table(outcomes), found)
    sys.exit(any(outcome.lost for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
