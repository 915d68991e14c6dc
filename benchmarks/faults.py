"""Kill a training run again and again, at random moments, and compare what it reaches with an undisturbed one.

    python benchmarks/faults.py --kills 30 --ranks 2 --results benchmarks/results

One rank, all of them or the launcher is killed (SIGKILL), or the launcher is asked to stop (SIGTERM, as a scheduler
does); every third kill waits for the write of a checkpoint and strikes inside it. Then the same command starts again
with ``train.resume=auto``. In the end the weights must be those of the undisturbed run, bit for bit, and its log must
have every step once with the same figures. Prints what was killed, where it hit, and how many steps had to be repeated;
exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.models.load import resolve_source
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_jsonl, write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware
from onpolicy_sdft.versions import package_versions

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("one rank, SIGKILL", "all ranks, SIGKILL", "launcher, SIGKILL", "launcher, SIGTERM")
COMPARED = ("loss/total", "train/grad_norm", "train/num_loss_tokens", "train/total_loss_tokens")
PATIENCE = 300.0  # seconds: a run that shows nothing for so long hangs, and that is a failure


def make_model(folder: Path) -> None:
    """Save a tiny random model with the embedded model's tokenizer."""
    if (folder / "config.json").is_file():
        return
    AutoTokenizer.from_pretrained(resolve_source(load_config().model)).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=49152, **sizes, max_position_embeddings=512)).save_pretrained(folder)


def command(options: argparse.Namespace, output: Path) -> list[str]:
    """Return the command line of a run, as a user types it."""
    own = {
        "model.name": options.folder / "model", "data.name": "embedded:list_functions", "data.limit": 60,
        "train.batch_size": 8, "rollout.max_new_tokens": 16,
    }  # fmt: skip
    flags = {
        **({"config": options.config} if options.config else own),
        "lora.r": 4, "lora.dropout": 0.1, "rollout.deterministic": "true", "rollout.num_slots": 8,
        "screening.truncated": "keep", "screening.looping": "keep", "screening.length": "keep",
        "objective.name": "reverse_kl", "teacher.weights": "ema",
        "train.max_steps": options.steps, "train.checkpoint_steps": 2, "eval.before_and_after": "false",
        "train.warn_truncated_rate": 1.0, "train.warn_length_ratio": 1000, "train.rank_timeout_seconds": 60,
        "train.resume": "auto", "train.output_dir": output,
    }  # fmt: skip
    arguments = ["-m", "onpolicy_sdft", "train"]
    for name, value in flags.items():
        arguments += [f"--{name}", str(value)]
    if options.ranks == 1:
        return [sys.executable, *arguments]
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", options.launch]
    return [*launch, "--num_processes", str(options.ranks), *arguments]


def start(options: argparse.Namespace, output: Path) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with (output.parent / f"{output.name}.log").open("ab") as log:
        return subprocess.Popen(
            command(options, output), cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes that train."""
    found = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return [each for each in found if "train" in each.cmdline() and "launch" not in each.cmdline()]


def unfinished(output: Path) -> set[tuple[str, int]]:
    """Return the checkpoints that are being written, or were when the run was killed: names and inodes."""
    folder = output / "checkpoints"
    with os.scandir(folder) if folder.is_dir() else nullcontext(()) as entries:
        return {(entry.name, entry.inode()) for entry in entries if entry.name.startswith(".tmp-")}


def kill(process: subprocess.Popen[bytes], kind: str, draw: random.Random, comes: Callable[[], bool]) -> bool:
    """Kill what the kind says as soon as the moment comes, and wait until nothing of the run is left.

    Returns:
        False where the run ended before.
    """
    whole = psutil.Process(process.pid).children(recursive=True)
    ranks = ranks_of(process)
    end = time.monotonic() + PATIENCE
    while not comes():
        if process.poll() is not None:
            return False
        if time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)
            raise SystemExit(f"no checkpoint was begun within {PATIENCE:g} s")
        time.sleep(0.0005)
    if kind == "one rank, SIGKILL":
        draw.choice(ranks).kill()
    elif kind == "all ranks, SIGKILL":
        for each in (*ranks, psutil.Process(process.pid)):  # ranks have process groups of their own
            if each.is_running():
                each.kill()
    elif kind == "launcher, SIGKILL":
        process.kill()
        time.sleep(draw.random())
        for each in whole:  # what a dead launcher leaves behind is the scheduler's to clear away
            if each.is_running():
                each.kill()
    else:
        process.terminate()  # ranks finish their step and save
    try:
        process.wait(PATIENCE)
        psutil.wait_procs(whole, PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise SystemExit(f"the run did not end within {PATIENCE:g} s after: {kind}") from None
    return True


def num_steps(output: Path) -> int:
    """Return how many steps the log has."""
    path = output / "metrics.jsonl"
    return len(read_jsonl(path)) if path.is_file() else 0


def disturb(options: argparse.Namespace, output: Path, draw: random.Random, aimed: bool) -> dict[str, Any] | None:
    """Start the run, kill it at a random moment, or in a checkpoint, and say what happened; None where it finished."""
    before, left = num_steps(output), unfinished(output)
    process = start(options, output)
    began = time.monotonic()
    steps = before
    while steps <= before and process.poll() is None:  # it loads, and repeats what the last kill took
        time.sleep(0.02)
        path = output / "metrics.jsonl"
        if path.is_file() and path.stat().st_mtime > time.time() - (time.monotonic() - began):
            break
        if time.monotonic() - began > PATIENCE:
            os.killpg(process.pid, signal.SIGKILL)
            raise SystemExit(f"the run wrote no step within {PATIENCE:g} s; see {output}.log")
    if process.poll() is None:
        time.sleep(draw.uniform(0, options.longest))
    kind = KINDS[1] if aimed else draw.choice(KINDS if options.ranks > 1 else KINDS[1:])
    comes = (lambda: bool(unfinished(output) - left)) if aimed else (lambda: True)
    if process.poll() is not None or not kill(process, kind, draw, comes):
        if process.returncode != 0:
            raise SystemExit(f"the run ended with {process.returncode} by itself; see {output}.log")
        return None
    if kind == "launcher, SIGTERM" and num_steps(output) != (RunDirectory(output).checkpoint_steps() or [0])[-1]:
        raise SystemExit(f"{kind}: the run stopped without saving its last step; see {output}.log")
    torn = unfinished(output) - left
    reached, kept = num_steps(output), (RunDirectory(output).checkpoint_steps() or [0])[-1]
    found = {"kind": kind, "step": reached, "checkpoint": kept, "inside_checkpoint": bool(torn)}
    print(f"{kind} at step {reached}, checkpoint {kept}{', while it wrote one' if torn else ''}", flush=True)
    return found


def digest(output: Path) -> str:
    """Return the SHA-256 of the trained weights of the newest checkpoint."""
    run = RunDirectory(output)
    path = run.checkpoint_path(run.checkpoint_steps()[-1]) / "trainable.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def what_is_lost(whole: Path, disturbed: Path) -> list[str]:
    """Compare a disturbed run with the undisturbed one."""
    first, second = (read_jsonl(each / "metrics.jsonl") for each in (whole, disturbed))
    lost = []
    if [row["step"] for row in first] != [row["step"] for row in second]:
        lost.append("the log has a gap or a step twice")
    for one, two in zip(first, second, strict=False):
        differing = [name for name in COMPARED if one["values"][name] != two["values"][name]]
        if differing:
            lost.append(f"step {one['step']} has another {differing[0]}")
            break
    if digest(whole) != digest(disturbed):
        lost.append("the weights differ")
    return lost


def campaign(options: argparse.Namespace) -> dict[str, Any]:
    """Run undisturbed once, then disturbed until there were enough kills."""
    if options.config is None:
        make_model(options.folder / "model")
    whole = options.folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    if start(options, whole).wait() != 0:
        raise SystemExit(f"the undisturbed run failed; see {whole}.log")
    draw, kills, lost, runs = random.Random(options.seed), [], [], 0
    while len(kills) < options.kills:
        output = options.folder / f"disturbed-{runs}"
        shutil.rmtree(output, ignore_errors=True)
        runs += 1
        while found := disturb(options, output, draw, aimed=len(kills) % 3 == 1):
            kills.append(found)
            if len(kills) == options.kills:
                if start(options, output).wait() != 0:
                    raise SystemExit(f"the last start failed; see {output}.log")
                break
        lost += [f"{output.name}: {text}" for text in what_is_lost(whole, output)]
    return {"kills": kills, "lost": lost, "runs": runs}


def table(outcome: dict[str, Any], options: argparse.Namespace) -> str:
    """Return the outcome as Markdown."""
    kills = outcome["kills"]
    counts = Counter(each["kind"] for each in kills)
    inside = sum(each["inside_checkpoint"] for each in kills)
    repeated = sum(each["step"] - each["checkpoint"] for each in kills)
    lines = ["| killed | times |", "|---|---|", *(f"| {kind} | {count} |" for kind, count in sorted(counts.items()))]
    lines += [
        "",
        f"{len(kills)} kills in {outcome['runs']} runs of {options.steps} steps on {options.ranks} ranks "
        f"({Path(options.launch).stem}), {inside} of them inside the write of a checkpoint. Steps that had to be taken "
        f"again: {repeated} (a checkpoint every 2 steps). Lost: {'; '.join(outcome['lost']) or 'nothing'}: weights bit "
        "for bit those of the undisturbed run, every step once in the log with the same figures."
        if not outcome["lost"]
        else f"{len(kills)} kills; LOST: {'; '.join(outcome['lost'])}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--launch", default="launch/accelerate/ddp.yaml")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--longest", type=float, default=4.0, help="Longest a run lives after its first step, seconds.")
    parser.add_argument("--config", type=Path, help="Model and data to train with; unset: a tiny model made here.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "faults")
    parser.add_argument("--results", type=Path, help="Directory for faults.json and faults.md.")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    outcome = campaign(options)
    print(table(outcome, options))
    print(f"{time.monotonic() - started:.0f} s")
    if options.results:
        record = {
            "command": ["benchmarks/faults.py", *sys.argv[1:]], **outcome, "git": git_state(ROOT),
            "hardware": hardware(), "versions": package_versions(["torch", "transformers", "peft", "accelerate"]),
        }  # fmt: skip
        write_json_atomic(options.results / "faults.json", json.loads(json.dumps(record)))
        write_text_atomic(options.results / "faults.md", table(outcome, options) + "\n")
    sys.exit(bool(outcome["lost"]))


if __name__ == "__main__":
    main()
