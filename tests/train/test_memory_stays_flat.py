"""Hundreds of steps over texts of ever other lengths, in a process of its own, end with the memory of the first few."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from onpolicy_sdft.runs.files import read_jsonl

STEPS, SETTLED = 300, 50
ALWAYS: dict[str, Any] = {
    "task.name": "exact", "rollout.max_new_tokens": 24, "screening.truncated": "keep", "screening.looping": "keep",
    "screening.length": "keep", "screening.check": "keep", "train.batch_size": 6, "train.max_steps": STEPS,
    "train.checkpoint_steps": STEPS, "train.precision": "bf16", "train.micro_batch_tokens": 600,
    "train.warn_truncated_rate": 1, "train.warn_length_ratio": 1e6, "eval.before_and_after": "false", "gate.rows": 0,
}  # fmt: skip
FULL = {"lora.enabled": "false", "model.dtype": "float32", "optim.lr": 1e-5}
LORA = {"model.dtype": "bfloat16", "optim.lr": 1e-4}
RUNS = {
    "sft-lora": {"train.targets": "demonstrations", **LORA},
    "sdft-lora": LORA,
    "sdft-full": FULL,
}


@pytest.fixture
def flags(tmp_path: Path, tokenizer: Any) -> dict[str, Any]:
    """A model wide enough for its kernels to weigh something, and rows of very different lengths."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
    LlamaForCausalLM(LlamaConfig(vocab_size=264, **sizes, **ids)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    numbers = random.Random(0)
    rows = [
        {"prompt": f"{index} " + "x" * numbers.randint(1, 120), "response": "y" * numbers.randint(1, 60)}
        for index in range(400)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        **ALWAYS, "model.name": tmp_path / "model", "data.path": tmp_path / "rows.jsonl",
        "train.output_dir": tmp_path / "run",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)  # three minutes alone, many more beside other work
@pytest.mark.parametrize("run", RUNS)
def test_three_hundred_steps_of_ragged_texts_end_with_the_memory_of_step_50(flags, run):
    options = {**flags, **RUNS[run]}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "onpolicy_sdft", "train", *words], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    values = [row["values"] for row in read_jsonl(options["train.output_dir"] / "metrics.jsonl")]
    resident = [value["memory/learn_mib"] for value in values]
    assert len(resident) == STEPS
    settled, last = median(resident[SETTLED - 5 : SETTLED + 5]), median(resident[-10:])
    assert last <= 1.05 * settled, f"{settled:.0f} MiB at step {SETTLED}, {last:.0f} MiB at step {STEPS}"
