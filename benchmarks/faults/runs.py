"""What the campaigns share: a model of a few thousand parameters, and how two runs of one command are compared."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.models.load import resolve_source
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import file_digest, read_json, read_jsonl, write_json_atomic, write_text_atomic
from onpolicy_sdft.runs.manifest import git_state, hardware
from onpolicy_sdft.versions import package_versions

ROOT = Path(__file__).resolve().parents[2]
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


def num_steps(output: Path) -> int:
    """Return how many steps the log of a run has."""
    log = output / "metrics.jsonl"
    return len(read_jsonl(log)) if log.is_file() else 0


def write_result(folder: Path, name: str, module: str, table: str, found: Mapping[str, Any]) -> None:
    """Write ``NAME.json`` and ``NAME.md``: what was found, by which command, where and on what."""
    versions = package_versions(["torch", "transformers", "peft", "accelerate"])
    about = {"command": [f"-m {module}", *sys.argv[1:]], "git": git_state(ROOT), "hardware": hardware()}
    write_json_atomic(folder / f"{name}.json", {**about, "versions": versions, **found})
    write_text_atomic(folder / f"{name}.md", table + "\n")


def digest(output: Path) -> str:
    """Return the SHA-256 of the trained weights of the newest checkpoint."""
    run = RunDirectory(output)
    return file_digest(run.checkpoint_path(run.checkpoint_steps()[-1]) / "trainable.safetensors")


def scores(output: Path) -> dict[str, Any]:
    """Return what evaluations left: every answer, and the scores without how quickly they were reached."""
    stages = read_json(output / "eval" / "summary.json")
    for stage in stages.values():
        stage.pop("taken_from", None)  # a path
        for questions in stage["sets"]:
            questions.pop("tokens_per_second")
    return {"summary": stages, **{path.name: read_jsonl(path) for path in (output / "eval").glob("*.jsonl")}}


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
    if read_jsonl(whole / "rollouts.jsonl") != read_jsonl(disturbed / "rollouts.jsonl"):
        found.append("the recorded rollouts differ")
    one, two = scores(whole), scores(disturbed)
    found += [f"eval/{name} differs" for name in sorted({*one, *two}) if one.get(name) != two.get(name)]
    if read_json(whole / "result.json") != read_json(disturbed / "result.json"):
        found.append("result.json differs")
    if not (disturbed / "report.html").is_file():
        found.append("report.html is missing")
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
