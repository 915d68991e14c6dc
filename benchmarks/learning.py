"""Learning alone: packed and padded micro-batches of the same rows, side by side; or what a backward pass keeps.

    python -m benchmarks.learning --results benchmarks/results
    python -m benchmarks.learning --kept

A model of SmolLM2-135M's shape with random weights (``--layers`` of them), LoRA on all linears, bfloat16 compute on
float32 weights. Rows are random tokens; the longest is ``--spread`` times the shortest. Both layouts learn the same
rows, one after the other, and ratios are taken within a round; the order changes from round to round.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from onpolicy_sdft.models.compiled import compile_layers, uncompiled
from onpolicy_sdft.models.packed import attention_of
from onpolicy_sdft.models.packing import examine
from onpolicy_sdft.models.policy import Policy
from onpolicy_sdft.objectives.inputs import LossInputs
from onpolicy_sdft.objectives.objective import Objective
from onpolicy_sdft.runs.files import write_json_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware
from onpolicy_sdft.train.memory import memory_mib
from onpolicy_sdft.train.pairing import Pairing
from onpolicy_sdft.types import MicroBatch, TrainingRow

ROOT = Path(__file__).resolve().parents[1]


class Learning:
    """A policy and rows to learn.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = LlamaConfig(
            vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=options.layers,
            num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(self.device):
            model: Any = AutoModelForCausalLM.from_config(config)
            if not options.full:
                model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        dtype = torch.float32 if options.float32 else torch.bfloat16
        if why := examine(model, self.autocast, self.device, dtype).refusal:
            raise SystemExit(f"this model does not learn packed rows: {why}")
        if options.compile:
            compile_layers(model)
        self.policy = Policy(model).train()
        lengths = random.Random(0)
        shortest = options.longest / options.spread
        self.rows = [self._row(round(shortest * options.spread ** lengths.random())) for _ in range(options.rows)]

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that learning computes in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=not self.options.float32)

    def batches(self, packed: bool) -> list[MicroBatch]:
        """Lay the rows out."""
        pairing = Pairing(self.options.micro_batch_tokens, 0, packed=packed)
        return [pairing.batch(group, self.device) for group in pairing.split(self.rows)]

    def learn(self, batch: MicroBatch) -> None:
        """Run a micro-batch forward and back."""
        with attention_of(batch, self.policy):
            with self.autocast():
                loss, _ = self.policy(batch, Objective(), LossInputs(batch.weights, batch.plain))
            loss.backward()

    def seconds(self, batches: list[MicroBatch], compiled: bool) -> float:
        """Return how long a step's micro-batches take."""
        with nullcontext() if compiled else uncompiled(self.policy):
            return self._seconds(batches)

    def _seconds(self, batches: list[MicroBatch]) -> float:
        clock = time.process_time if self.options.cpu_time else time.perf_counter
        self._wait()
        started = clock()
        for batch in batches:
            self.learn(batch)
        self._wait()
        self.policy.zero_grad(set_to_none=True)
        return clock() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @staticmethod
    def _row(length: int) -> TrainingRow:
        ids = torch.randint(0, 49_152, (length,)).tolist()
        return TrainingRow(ids[: length // 2], ids[length // 2 :])


def compare(learning: Learning, rounds: int) -> dict[str, Any]:
    """Time both layouts in turns; return seconds, ratios and what there was to compute."""
    laid = {"padded": learning.batches(False), "packed": learning.batches(True)}
    if learning.options.compile:
        laid["compiled"] = laid["packed"]
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if learning.device.type == "cuda" else "cpu",
        "real_tokens": sum(row.length for row in learning.rows),
        "tokens": {name: sum(b.input_ids.numel() for b in batches) for name, batches in laid.items()},
        "micro_batches": {name: len(batches) for name, batches in laid.items()},
        "seconds": {name: [] for name in laid},
        "mib": {},
    }
    for number in range(-1, rounds):
        for name in sorted(laid, reverse=bool(number % 2)):
            memory_mib(learning.device)
            seconds = learning.seconds(laid[name], compiled=name == "compiled")
            found["mib"][name] = memory_mib(learning.device)
            if number >= 0:  # the first round loads kernels
                found["seconds"][name].append(seconds)
    for one, other in (("padded", "packed"), ("packed", "compiled")):
        if other in laid:
            pairs = zip(found["seconds"][one], found["seconds"][other], strict=True)
            found[f"{one}_over_{other}"] = sorted(a / b for a, b in pairs)
    return found


def kept(learning: Learning) -> tuple[int, Counter[str]]:
    """Return the tokens of one packed micro-batch, and the bytes its backward keeps, by dtype and shape.

    Weights are not counted, nor views of what is counted already.
    """
    batch = max(learning.batches(packed=True), key=lambda batch: batch.input_ids.numel())
    owned = {tensor.untyped_storage().data_ptr() for tensor in learning.policy.parameters()}
    held: list[torch.Tensor] = []  # so that no address is given to another
    bytes_by_kind: Counter[str] = Counter()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            owned.add(storage.data_ptr())
            held.append(tensor)
            kind = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            bytes_by_kind[kind] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), attention_of(batch, learning.policy):
        with learning.autocast():
            loss, _ = learning.policy(batch, Objective(), LossInputs(batch.weights, batch.plain))
        loss.backward()
    return batch.input_ids.numel(), bytes_by_kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--spread", type=float, default=8.0)
    parser.add_argument("--micro_batch_tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="Train every weight rather than adapters.")
    parser.add_argument("--float32", action="store_true", help="Compute in float32.")
    parser.add_argument("--cpu_time", action="store_true", help="Count processor time: for cores that others use too.")
    parser.add_argument("--compile", action="store_true", help="Time compiled layers on packed rows as well.")
    parser.add_argument("--kept", action="store_true", help="Print what one packed micro-batch keeps, and end.")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    learning = Learning(options)
    if options.kept:
        num_tokens, bytes_by_kind = kept(learning)
        total = sum(bytes_by_kind.values())
        print(f"{num_tokens} tokens keep {total / 2**20:.0f} MiB, {total / num_tokens / 2**10:.0f} KiB a token")
        for kind, num_bytes in bytes_by_kind.most_common(20):
            print(f"{num_bytes / 2**20:9.1f} MiB {num_bytes / total:6.1%}  {kind}")
        return
    found = compare(learning, options.rounds)
    print(json.dumps({**found, "seconds": {k: statistics.median(v) for k, v in found["seconds"].items()}}, indent=1))
    print({name: statistics.median(ratios) for name, ratios in found.items() if "_over_" in name})
    if options.results:
        given = {name: value for name, value in vars(options).items() if name != "results"}
        record = {
            "command": ["python -m benchmarks.learning", *sys.argv[1:]], "options": given, "git": git_state(ROOT),
            "hardware": hardware(), "threads": torch.get_num_threads(), **found,
        }  # fmt: skip
        write_json_atomic(options.results / f"learning_spread_{options.spread:g}.json", json.loads(json.dumps(record)))


if __name__ == "__main__":
    main()
