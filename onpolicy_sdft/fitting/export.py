"""Export a run's model: adapter or merged, to a folder or the hub."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from onpolicy_sdft.build.base import base_of
from onpolicy_sdft.build.loaded import ReadyModel, load_run
from onpolicy_sdft.data.sources import is_on_hub
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.models.card import HUB_DATA
from onpolicy_sdft.models.embedded import PREFIX
from onpolicy_sdft.models.export import export_model, hold_in, merge_adapter, push_folder, refuse_foreign
from onpolicy_sdft.models.load import is_adapter
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onpolicy_sdft.config.schema import RunConfig

logger = logging.getLogger(__name__)


def export(
    target: str | Path,
    output: str | Path | None,
    *,
    merged: bool,
    push_to_hub: str | None,
    dtype: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> Path | None:
    """Write a run's model elsewhere, merged if asked, and push it to the hub if asked.

    Args:
        target: The run.
        output: Directory to write.
        merged: Fold the adapter into the base.
        push_to_hub: Hub name to push to.
        dtype: Of a whole model; None: of a merged one that of the base's files, of a trained one as it was trained.
        private: Of a hub repository that is made.
        revision: Branch to push to.

    Returns:
        Where it was written; None when it was only pushed.

    Raises:
        ConfigError: If neither an output nor a hub name is given, or the options do not go together.
    """
    if output is None and push_to_hub is None:
        raise ConfigError("Say where to: --output DIR, or --push_to_hub USER/NAME.")
    if push_to_hub is None and (private or revision is not None):
        raise ConfigError("--private and --revision are of a hub repository. Fix: --push_to_hub USER/NAME.")
    if output is not None:
        refuse_foreign(Path(output).resolve())
        if Path(target).resolve() in (Path(output).resolve(), *Path(output).resolve().parents):
            raise ConfigError(f"--output {output} is inside the run itself. Fix: another directory.")
    finished = load_run(target)
    assert finished.run is not None
    base = base_of(finished.run, finished.config).name
    if push_to_hub is not None and not merged and _is_here_only(finished.model, base):
        raise ConfigError(f"The adapter of {target} stands on {base}, which is on this machine only. Fix: --merged.")
    if not merged and isinstance(finished.model, PeftModel) and is_adapter(base):
        raise ConfigError(f"The adapter of {target} stands on {base}, an adapter itself. Fix: --merged.")
    facts = {**_facts(finished), "merged": str(merged).lower()}
    model = _as_asked(finished, dtype, merged=merged)
    if not isinstance(model, PeftModel):
        facts["dtype"] = str(model.dtype).removeprefix("torch.") + ("" if dtype is None else ", as asked")
        logger.info(f"the weights are {facts['dtype']}")
    summary, tokenizer = _scores(finished.run), finished.bundle.loaded.tokenizer
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "model" if output is None else Path(output)
        export_model(model, tokenizer, directory, base, facts, summary)
        if output is not None:
            logger.info(f"written to {output}")
        if push_to_hub is not None:  # the very files: the libraries' own push leaves the stop tokens and the card out
            push_folder(directory, push_to_hub, private=private, revision=revision)
            logger.info(f"pushed to {push_to_hub}")
    return Path(output) if output is not None else None


def _as_asked(finished: ReadyModel, dtype: str | None, *, merged: bool) -> PreTrainedModel | PeftModel:
    """Return a run's model as it is to be written."""
    model, wanted = finished.model, None if dtype is None else getattr(torch, dtype)
    if not isinstance(model, PeftModel):
        if wanted is not None:
            hold_in(model, wanted)
        return model
    if merged:
        if finished.config.model.load_in_4bit:
            raise ConfigError("--merged cannot fold an adapter into a 4-bit base. Fix: export the adapter alone.")
        return merge_adapter(model, wanted or finished.bundle.loaded.stored_dtype)
    if dtype is not None:
        raise ConfigError(f"--dtype {dtype} is for whole models, not for an adapter. Fix: --merged, or leave it out.")
    return model


def _is_here_only(model: PreTrainedModel | PeftModel, base: str) -> bool:
    return isinstance(model, PeftModel) and (base.startswith(PREFIX) or Path(base).is_dir())


def _facts(finished: ReadyModel) -> dict[str, str]:
    assert finished.run is not None
    config = finished.config
    manifest = read_json(finished.run.manifest_path) if finished.run.manifest_path.is_file() else {}
    fingerprint = str((manifest.get("data_fingerprint") or {}).get("train", "unknown"))[:16]
    facts = model_facts(config, config.data.path or config.data.name or "", fingerprint)
    result = read_json(finished.run.result_path) if finished.run.result_path.is_file() else {}
    if verdict := result.get("verdict"):
        facts["compared with the start"] = verdict["text"]
    return facts | {"run": finished.run.path.name}


def model_facts(config: RunConfig, where: str, fingerprint: str) -> dict[str, str]:
    """Return the lines of a model card that say how the model was made.

    By options, not by the name of a method: between the named ones lie many others.
    """
    samples = config.train.targets == "policy"
    return {
        "targets": _rollouts(config) if samples else config.train.targets,
        "data": f"{where} (sha256 {fingerprint[:16]})",
        "objective": config.objective.name,
        **({"teacher weights": config.teacher.weights} if samples else {}),
        "context template": config.context.template,
        "seed": str(config.train.seed),
        **({HUB_DATA: str(config.data.name)} if is_on_hub(config.data) else {}),
    }


def _rollouts(config: RunConfig) -> str:
    prompt = "the bare prompt" if config.rollout.prompt == "student" else "the teacher's prompt"
    told = "; the teacher is told of the student's own attempts" if config.feedback.enabled else ""
    return f"rollouts under {prompt}{told}"


def _scores(run: RunDirectory) -> Mapping[str, Any]:
    return read_json(run.eval_summary_path) if run.eval_summary_path.is_file() else {}
