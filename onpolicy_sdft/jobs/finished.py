"""A finished run, or any model, ready to be scored, sampled or exported."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from onpolicy_sdft.config.check import evaluation_sets
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.eval.retention import general_prompts
from onpolicy_sdft.jobs.evaluate import evaluate_stage, files_identity
from onpolicy_sdft.jobs.parts import ModelBundle, load_chat, load_eval_sets, refuse_unaskable
from onpolicy_sdft.jobs.start import base_of
from onpolicy_sdft.models.embedded import PREFIX
from onpolicy_sdft.models.export import export_model, hold_in, merge_adapter, push_folder, refuse_foreign
from onpolicy_sdft.models.load import is_adapter
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json
from onpolicy_sdft.types import NoiseKey, RolloutRequest, SamplingParams, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onpolicy_sdft.config.schema import EvalConfig, RunConfig

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A model with its prompts, and the run it came from if it came from one."""

    config: RunConfig  # of the run; ``model.name`` is the base model
    chat: ModelBundle
    model: PreTrainedModel | PeftModel
    run: RunDirectory | None

    def sample(
        self,
        prompts: Sequence[str],
        *,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        system: str | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Answer prompts; greedy at temperature 0.

        Args:
            prompts: User turns.
            temperature: Of the samples.
            max_new_tokens: Longest answer, in tokens.
            system: A system message for all of them.
            seed: Of the samples; the same seed gives the same answers.
        """
        before = [Turn("system", system)] if system else []
        requests = [
            RolloutRequest(
                self.chat.renderer.student_ids([*before, Turn("user", prompt)]),
                NoiseKey(seed, 0, f"sample-{index}"),
                max_new_tokens,
            )
            for index, prompt in enumerate(prompts)
        ]
        rollout = self.config.rollout
        backend = self.chat.backend(self.model, rollout, rollout.batch_size)
        rollouts = backend.generate(requests, SamplingParams(temperature=temperature))
        return [self.chat.renderer.decode(rollout.token_ids) for rollout in rollouts]


def is_run(target: str | Path) -> bool:
    """Whether a path is a run directory."""
    return (Path(target) / "manifest.json").is_file()


def load_run(path: str | Path, say: Say = lambda text: None) -> LoadedRun:
    """Load the trained model of a run directory.

    Raises:
        RunDirectoryError: If the run has no model yet.
    """
    run = RunDirectory.open(path, require=["config.yaml"])
    if not run.model_path.is_dir():
        raise RunDirectoryError(
            f"{run.path} has no model/ yet: its training was not finished. Go on with sdft train --config "
            f"{run.config_path} --train.resume auto."
        )
    config = load_config(run.config_path)
    if (run.model_path / "adapter_config.json").is_file():
        chat = load_chat(dataclasses.replace(config, model=base_of(run, config)), say)
        model = PeftModel.from_pretrained(chat.loaded.model, run.model_path)
        return LoadedRun(config, chat, model, run)
    tuned = dataclasses.replace(config, model=dataclasses.replace(config.model, name=str(run.model_path)))
    chat = load_chat(tuned, say)
    return LoadedRun(config, chat, chat.loaded.model, run)


def load_model(name: str, config: RunConfig, say: Say = lambda text: None) -> LoadedRun:
    """Load any model by hub id, path or embedded name, with the prompts of a config."""
    named = dataclasses.replace(config, model=dataclasses.replace(config.model, name=name))
    chat = load_chat(named, say)
    return LoadedRun(config, chat, chat.loaded.model, None)


def evaluate(
    target: str | Path,
    config: RunConfig | None = None,
    output: str | Path | None = None,
    say: Say = lambda text: None,
) -> tuple[RunDirectory, dict[str, Any]]:
    """Score a run or a model on the evaluation sets of a config (of the run's own when none is given).

    Args:
        target: Run directory, local model, hub id or embedded name.
        config: Where the sets come from; needed for a model that is not a run.
        output: Directory for the records; unset means the run itself, or ``runs/eval-NAME``.
        say: Told what is going on.

    Returns:
        Where the records are, and the summary of stage ``eval``.

    Raises:
        ConfigError: If there is no set to score on.
    """
    if config is None and not is_run(target):
        raise ConfigError(f"{target} is not a run directory, so say what to score it on: --config FILE.")
    if config is None:
        config = load_config(RunDirectory.open(target, require=["config.yaml"]).config_path)
    if not evaluation_sets(config):
        raise ConfigError("There is no set to score on. Fix: --eval.path FILE, or --config FILE with eval.sets.")
    sets = load_eval_sets(evaluation_sets(config))
    general_prompts(config.eval.kl_prompts)  # asking for more than there are is refused before any work
    if is_run(target):
        finished = load_run(target, say)
        assert finished.run is not None
        weights = files_identity(finished.run.model_path)
        # Whatever the sets: its own seed, and what it started from.
        config = dataclasses.replace(config, model=finished.config.model, train=finished.config.train)
    else:
        finished, weights = load_model(str(target), config, say), "as loaded"
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, name=str(target)), eval=_without_kl(config, say)
        )
    refuse_unaskable(finished.chat, sets)
    if output is None and finished.run is not None:
        run = finished.run
    else:
        default = "runs/eval-" + "".join(c if c.isalnum() else "-" for c in str(target))
        run = RunDirectory.create(output or default, resume=True)
    summary = evaluate_stage(config, finished.chat, finished.model, sets, run, "eval", weights=weights)
    return run, summary


def _without_kl(config: RunConfig, say: Say) -> EvalConfig:
    if config.eval.kl_prompts:
        say("KL to a base model is measured for runs only: a model alone does not say what it was tuned from")
    return dataclasses.replace(config.eval, kl_prompts=0)


def export(
    target: str | Path,
    output: str | Path | None,
    *,
    merged: bool,
    push_to_hub: str | None,
    say: Say,
    dtype: str | None = None,
) -> Path | None:
    """Write a run's model elsewhere, merged if asked, and push it to the hub if asked.

    Args:
        target: The run.
        output: Directory to write.
        merged: Fold the adapter into the base.
        push_to_hub: Hub name to push to.
        say: Told what was written.
        dtype: Of a whole model; None: of a merged one that of the base's files, of a trained one as it was trained.

    Returns:
        Where it was written; None when it was only pushed.

    Raises:
        ConfigError: If neither an output nor a hub name is given, or the options do not go together.
    """
    if output is None and push_to_hub is None:
        raise ConfigError("Say where to: --output DIR, or --push_to_hub USER/NAME.")
    if output is not None:
        refuse_foreign(Path(output).resolve())
        if Path(target).resolve() in (Path(output).resolve(), *Path(output).resolve().parents):
            raise ConfigError(f"--output {output} is inside the run itself. Fix: another directory.")
    finished = load_run(target, say)
    assert finished.run is not None
    model = finished.model
    base = base_of(finished.run, finished.config).name
    if push_to_hub is not None and not merged and _is_here_only(model, base):
        raise ConfigError(f"The adapter of {target} stands on {base}, which is on this machine only. Fix: --merged.")
    if not merged and isinstance(model, PeftModel) and is_adapter(base):
        raise ConfigError(f"The adapter of {target} stands on {base}, an adapter itself. Fix: --merged.")
    facts = {**_facts(finished), "merged": str(merged).lower()}
    if not isinstance(model, PeftModel):
        if dtype is not None:
            hold_in(model, getattr(torch, dtype))
    elif merged:
        if finished.config.model.load_in_4bit:
            raise ConfigError("--merged cannot fold an adapter into a 4-bit base. Fix: export the adapter alone.")
        model = merge_adapter(model, finished.chat.loaded.stored_dtype if dtype is None else getattr(torch, dtype))
    elif dtype is not None:
        raise ConfigError(f"--dtype {dtype} is for whole models, not for an adapter. Fix: --merged, or leave it out.")
    if not isinstance(model, PeftModel):
        facts["dtype"] = str(model.dtype).removeprefix("torch.") + ("" if dtype is None else ", as asked")
        say(f"the weights are {facts['dtype']}")
    summary, tokenizer = _scores(finished.run), finished.chat.loaded.tokenizer
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "model" if output is None else Path(output)
        export_model(model, tokenizer, directory, base, facts, summary)
        if output is not None:
            say(f"written to {output}")
        if push_to_hub is not None:  # the very files: the libraries' own push leaves the stop tokens and the card out
            push_folder(directory, push_to_hub)
            say(f"pushed to {push_to_hub}")
    return Path(output) if output is not None else None


def _is_here_only(model: PreTrainedModel | PeftModel, base: str) -> bool:
    return isinstance(model, PeftModel) and (base.startswith(PREFIX) or Path(base).is_dir())


def _facts(finished: LoadedRun) -> dict[str, str]:
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
    """Return the lines of a model card that say how the model was made."""
    return {
        "method": {
            "policy": "sdft" if config.objective.name == "nll" else "sdft_kl",
            "demonstrations": "sft",
            "distilled": "offline_sdft",
        }[config.train.targets],
        "data": f"{where} (sha256 {fingerprint[:16]})",
        "objective": config.objective.name,
        "teacher weights": config.teacher.weights,
        "context template": config.context.template,
        "seed": str(config.train.seed),
    }


def _scores(run: RunDirectory) -> Mapping[str, Any]:
    return read_json(run.eval_summary_path) if run.eval_summary_path.is_file() else {}
