"""What the campaigns share: a model of a few thousand parameters, and how two runs of one command are compared."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.models.load import resolve_source
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json, read_jsonl

#: Figures of a step that depend on nothing but the run itself.
FIGURES = ("loss/total", "train/grad_norm", "train/num_loss_tokens", "train/total_loss_tokens")


def make_model(folder: Path, source: Path | None = None) -> None:
    """Copy a model, or save a tiny random one with the embedded model's tokenizer."""
    if (folder / "config.json").is_file():
        return
    if source is not None:
        shutil.copytree(source, folder)
        return
    AutoTokenizer.from_pretrained(resolve_source(load_config().model)).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=49152, **sizes, max_position_embeddings=512)).save_pretrained(folder)


def digest(output: Path) -> str:
    """Return the SHA-256 of the trained weights of the newest checkpoint."""
    run = RunDirectory(output)
    path = run.checkpoint_path(run.checkpoint_steps()[-1]) / "trainable.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def scores(output: Path) -> dict[str, Any]:
    """Return the scores of a run's result by name, without times."""
    path = output / "result.json"
    return read_json(path).get("scores", {}) if path.is_file() else {}


def differences(whole: Path, disturbed: Path) -> list[str]:
    """Say what of a run that was disturbed is not what the undisturbed one left."""
    found = []
    first, second = (read_jsonl(each / "metrics.jsonl") for each in (whole, disturbed))
    if [row["step"] for row in first] != [row["step"] for row in second]:
        found.append("the log has a gap or a step twice")
    for one, two in zip(first, second, strict=False):
        differing = [name for name in FIGURES if one["values"].get(name) != two["values"].get(name)]
        if differing:
            found.append(f"step {one['step']} has another {differing[0]}")
            break
    if digest(whole) != digest(disturbed):
        found.append("the weights differ")
    one, two = (
        read_jsonl(each / "rollouts.jsonl") if (each / "rollouts.jsonl").is_file() else []
        for each in (whole, disturbed)
    )
    if one != two:
        found.append("the recorded rollouts differ")
    if scores(whole) != scores(disturbed):
        found.append("the scores differ")
    for name in ("report.html", "result.json"):
        if (whole / name).is_file() != (disturbed / name).is_file():
            found.append(f"{name} is missing")
    return found


def sequence_differences(whole: Path, disturbed: Path) -> list[str]:
    """Say what of a sequence that was disturbed is not what the undisturbed one left."""
    names = sorted(run.parent.name for run in whole.glob("*/metrics.jsonl"))
    found = [f"{name}: {text}" for name in names for text in differences(whole / name, disturbed / name)]
    one, two = (read_json(each / "sequence.json") for each in (whole, disturbed))
    for stage in (*one["stages"], *two["stages"]):
        stage.pop("seconds")
    differing = [key for key in one if key not in ("command", "config", "manifest") and one[key] != two.get(key)]
    return found + [f"sequence.json has another {key}" for key in differing]
