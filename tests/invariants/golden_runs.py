"""Ten small runs, with the losses, tokens and weights that they must give.

    python tests/invariants/golden_runs.py          writes golden_runs.json anew; the commit says why

Numbers are those of one processor and one torch. Elsewhere tokens must be the same and numbers close.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.runs.files import read_jsonl

RECORDS = Path(__file__).with_name("golden_runs.json")
WORDS = ("one", "two", "three", "four", "five", "six", "seven")
YAML = """
model: {{name: {model}}}
lora: {{r: 4, alpha: 8}}
data: {{path: {data}}}
task: {{name: exact}}
rollout: {{max_new_tokens: 12, num_slots: 4, deterministic: true}}
screening: {{banned: keep, truncated: keep, looping: keep, length: keep, answer_only: keep, check: keep}}
optim: {{lr: 0.01, warmup_steps: 1}}
train: {{batch_size: 4, max_steps: 4, micro_batch_tokens: 200, rollout_samples: 100}}
eval:
  kl_prompts: 3
  kl_max_new_tokens: 6
  sets:
    - {{label: task, data: {{path: {data}}}, task: {{name: exact}}, max_new_tokens: 5}}
"""
METRICS = ("loss/total", "train/grad_norm", "train/num_loss_tokens")
RUNS: dict[str, dict[str, Any]] = {
    "sft": {"train.targets": "demonstrations"},
    "sdft": {},
    "sdft, hf backend": {"rollout.backend": "hf"},
    "sdft, all weights": {"lora.enabled": False, "optim.lr": 0.001},
    "sdft, screened": {"screening.check": "fallback", "screening.fallback_clip": 5.0},
    "best of three": {"rollout.num_samples": 3, "screening.pick": "best"},
    "blend": {"rollout.blend": 0.5},
    "reverse_kl": {
        "rollout.prompt": "student", "objective.name": "reverse_kl", "teacher.weights": "ema", "teacher.half_life": 2.0,
    },
    "forward_kl": {"objective.name": "forward_kl", "rollout.num_samples": 2, "objective.anchor_kl": 0.1},
    "padded": {"train.layout": "padded", "rollout.temperature": 0.7},
}  # fmt: skip


def facts() -> dict[str, str]:
    """Return what numbers depend on besides the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "torch": torch.__version__}


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def make(name: str, model: Path, folder: Path) -> dict[str, Any]:
    """Make one of the runs and return what is compared."""
    data, config, output = folder / "rows.jsonl", folder / "config.yaml", folder / "run"
    rows = [{"prompt": f"say {word} " + "x" * 3 * i, "response": word * (1 + i % 2)} for i, word in enumerate(WORDS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.write_text(YAML.format(model=model, data=data))
    outcome = fit(load_config(config, **RUNS[name], **{"train.output_dir": str(output)}))
    steps = [row["values"] for row in read_jsonl(output / "metrics.jsonl")]
    texts = [[row["step"], row["example_id"], row["target"]] for row in read_jsonl(output / "rollouts.jsonl")]
    after = outcome.summary["after"]
    return {
        "steps": [[step.get(key) for key in METRICS] for step in steps],
        "texts": digest(texts),
        "mean_length": after["sets"][0]["mean_length"],
        "kl": after["kl"]["mean"],
        "weights": digest([path.read_bytes().hex() for path in sorted((output / "model").glob("*.safetensors"))]),
    }


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import make_model, make_tokenizer

    torch.set_num_threads(1)
    records: dict[str, Any] = {"facts": facts(), "runs": {}}
    with tempfile.TemporaryDirectory() as made:
        model = Path(made) / "model"
        make_model().save_pretrained(model)
        make_tokenizer().save_pretrained(model)
        for index, name in enumerate(RUNS):
            folder = Path(made) / str(index)
            folder.mkdir()
            records["runs"][name] = make(name, model, folder)
    RECORDS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
