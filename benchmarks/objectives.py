"""Seconds and peak memory of each objective alone: loss and gradients of one micro-batch's loss tokens.

    python -m benchmarks.objectives --results benchmarks/results

Sizes of SmolLM2-135M (hidden 576, vocabulary 49,152), float32 head, with and without bfloat16 compute; the head is
frozen as under LoRA, or trained. Every case runs in a process of its own; its memory is the peak over what stood before
the call. ``naive`` is the same loss with whole logits and autograd.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.adapters.steps import forget_peak, peak_mib
from onpolicy_sdft.models.policy import Head
from onpolicy_sdft.objectives.inputs import LossInputs, TeacherHidden
from onpolicy_sdft.objectives.objective import Objective
from onpolicy_sdft.runs.files import write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware
from onpolicy_sdft.versions import package_versions

ROOT = Path(__file__).resolve().parents[1]
HIDDEN, VOCABULARY = 576, 49_152
CASES = {
    "nll": {"name": "nll"},
    "forward_kl": {"name": "forward_kl"},
    "reverse_kl": {"name": "reverse_kl"},
    "jsd": {"name": "jsd"},
    "reverse_kl, 64 kept of the teacher": {"name": "reverse_kl", "support": "teacher", "num_kept": 64},
    "sampled_reverse_kl": {"name": "sampled_reverse_kl"},
    "nll + anchor": {"name": "nll", "anchor_weight": 0.1},
    "naive nll": {},
    "naive forward_kl": {},
}


def naive(
    case: str, hidden: torch.Tensor, head: Head, labels: torch.Tensor, distribution: TeacherHidden
) -> torch.Tensor:
    """Whole logits, autograd."""
    logits = head.logits(hidden)
    if case == "naive nll":
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    teacher = distribution.head.finish(
        torch.nn.functional.linear(distribution.hidden_MD, distribution.head.weight_VD)
    ).log_softmax(-1)
    return torch.nn.functional.kl_div(logits.log_softmax(-1), teacher, reduction="sum", log_target=True)


def measure(case: str, num_tokens: int, bf16: bool, trained: bool, repeats: int) -> dict[str, float]:
    """Run one case and return its median seconds and its peak memory beyond the inputs."""
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, HIDDEN, requires_grad=True)
    head = Head((torch.randn(VOCABULARY, HIDDEN) * 0.1).requires_grad_(trained))
    distribution = TeacherHidden(torch.randn(num_tokens, HIDDEN), Head(head.weight_VD.detach()))
    labels = torch.randint(0, VOCABULARY, (num_tokens,))
    plain = torch.zeros(num_tokens, dtype=torch.bool)
    signals = LossInputs(torch.ones(num_tokens), plain, distribution, distribution if "anchor" in case else None)
    seconds = []
    before = 0.0
    for index in range(repeats + 1):
        if index == 1:  # the first run loads kernels
            forget_peak()
            before = peak_mib()
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if case.startswith("naive"):
                loss = naive(case, hidden, head, labels, distribution)
            else:
                loss = Objective(**CASES[case])(hidden, head, labels, signals).loss_sum  # type: ignore[arg-type]
        loss.backward()
        seconds.append(time.perf_counter() - started)
        hidden.grad = head.weight_VD.grad = None
    return {"seconds": statistics.median(seconds[1:]), "peak_mib": peak_mib() - before}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = ["| objective | head | compute | ms a 1,000 tokens | peak MiB |", "|---|---|---|---|---|"]
    for row in rows:
        each = row["seconds"] / row["num_tokens"] * 1e6
        head, compute = "trained" if row["trained"] else "frozen", "bfloat16" if row["bf16"] else "float32"
        lines.append(f"| {row['case']} | {head} | {compute} | {each:.0f} | {row['peak_mib']:.0f} |")
    num_tokens = rows[0]["num_tokens"]
    note = (
        f"{num_tokens} loss tokens, hidden {HIDDEN}, vocabulary {VOCABULARY}; one float32 [tokens, vocabulary] tensor "
        f"takes {num_tokens * VOCABULARY * 4 / 2**20:.0f} MiB. Median of {rows[0]['repeats']} runs."
    )
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_tokens", type=int, default=1400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case = json.loads(options.one)
        print(json.dumps(measure(case["case"], case["num_tokens"], case["bf16"], case["trained"], case["repeats"])))
        return
    rows = []
    for trained in (False, True):
        for bf16 in (False, True):
            for name in CASES:
                case = {"case": name, "bf16": bf16, "trained": trained}
                case |= {"num_tokens": options.num_tokens, "repeats": options.repeats}
                command = [sys.executable, "-m", "benchmarks.objectives", "--one", json.dumps(case)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rows.append({**case, **json.loads(done.stdout)})
                print(rows[-1], flush=True)
    print(table(rows))
    if options.results:
        record = {
            "command": ["python -m benchmarks.objectives", *sys.argv[1:]], "git": git_state(ROOT),
            "hardware": hardware(), "threads": torch.get_num_threads(), "rows": rows,
            "versions": package_versions(["torch"]),
        }  # fmt: skip
        write_json_atomic(options.results / "objectives.json", json.loads(json.dumps(record)))
        write_text_atomic(options.results / "objectives.md", table(rows) + "\n")


if __name__ == "__main__":
    main()
