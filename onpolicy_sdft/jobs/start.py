"""Where training starts when that is not the base model: the last weights of another run, such as the task before."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import GenerationConfig

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.jobs.evaluate import eval_identity
from onpolicy_sdft.models.embedded import PREFIX
from onpolicy_sdft.models.export import export_model, merge_adapter
from onpolicy_sdft.models.generation import listed_ids, settle_generation
from onpolicy_sdft.models.load import is_adapter, load
from onpolicy_sdft.offline.file import file_digest
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import differences, read_json, write_json_atomic
from onpolicy_sdft.train.checkpoint import load_start, newest_checkpoint, weights_file

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import ModelConfig, RunConfig
    from onpolicy_sdft.eval.runner import EvalSet
    from onpolicy_sdft.train.step import Trainer

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Start:
    """The run that this one goes on from."""

    run: RunDirectory
    checkpoint: Path  # its last one
    digest: str  # of the weights there

    @property
    def step(self) -> int:
        """Optimizer steps that run had taken."""
        return int(self.checkpoint.name.rpartition("-")[2])


def find_start(config: RunConfig, say: Say) -> Start | None:
    """Return the run that a config starts from, checked to fit; None for the base model.

    Raises:
        ConfigError: If it trained another model, or other weights of it.
        RunDirectoryError: If there is no such run, or it has no whole checkpoint.
    """
    train = config.train
    if train.start_from is None:
        return None
    if Path(train.start_from).resolve() == Path(train.output_dir).resolve():
        raise ConfigError(f"train.start_from={train.start_from} is train.output_dir itself. Fix: name another.")
    run = RunDirectory.open(train.start_from, require=["config.yaml"])
    earlier = load_config(run.config_path)
    if train.carry == "continue" and _is_merged(earlier):
        raise ConfigError(
            f"The adapter of train.start_from={train.start_from} stands on a base that earlier tasks were merged into "
            "(its train.carry=merge), so it cannot go on over the base model. Fix: --train.carry merge."
        )
    mine, theirs = (_weights_of(each, train.carry) for each in (config, earlier))
    if differing := differences(theirs, mine):
        key = differing[0]
        raise ConfigError(
            f"train.start_from={train.start_from} has another {key}: {theirs[key]!r}, this run {mine[key]!r}. Fix: "
            "the same model and adapters" + (", or --train.carry merge." if config.lora.enabled else ".")
        )
    found = newest_checkpoint(run, say)
    if found is None:
        raise RunDirectoryError(
            f"train.start_from={train.start_from} has no checkpoint to start from. Fix: finish that run first "
            "(--train.resume auto)."
        )
    return Start(run, found[0], file_digest(weights_file(found[0])))


def _weights_of(config: RunConfig, carry: str) -> dict[str, object]:
    """What must be the same so that one run's weights mean anything in another."""
    model = {**dataclasses.asdict(config.model), "cache_dir": None}
    for name in ("dtype", "attn_implementation", "gradient_checkpointing"):  # how they are held, not what they are
        model.pop(name)
    if carry == "merge":
        return {"model": model, "lora.enabled": config.lora.enabled}
    lora = {name: value for name, value in dataclasses.asdict(config.lora).items() if name != "dropout"}
    return {"model": model, "lora": lora if config.lora.enabled else None}


def has_base(config: RunConfig) -> bool:
    """Whether a run's adapter stands on a base of its own: a task before, or a model that is an adapter, merged.

    An adapter on a base that is an adapter itself would be loaded without it, by PEFT and whoever uses that.
    """
    return config.lora.enabled and (_is_merged(config) or _is_on_adapter(config))


def _is_merged(config: RunConfig) -> bool:
    return config.train.start_from is not None and config.train.carry == "merge"


def _is_on_adapter(config: RunConfig) -> bool:
    return not config.model.name.startswith(PREFIX) and is_adapter(config.model.name, config.model.revision)


def base_of(run: RunDirectory, config: RunConfig) -> ModelConfig:
    """Return the model that a run's adapter stands on: its own merged base where it has one, else the base model.

    Raises:
        RunDirectoryError: If the base is gone.
    """
    if not run.base_path.is_dir():
        if not (config.lora.enabled and _is_merged(config)):
            return config.model  # an adapter is merged when it is loaded
        raise RunDirectoryError(
            f"{run.base_path} is not there, and the adapter of that run means nothing without it. Fix: put it "
            "back, or train that run again."
        )
    return dataclasses.replace(config.model, name=str(run.base_path), revision=None)


def trained_to(step: int, num_loss_tokens: int) -> str:
    """Say how far weights were trained: the mark of their scores."""
    return f"step {step}, {num_loss_tokens} loss tokens"


def make_base(config: RunConfig, start: Start | None, say: Say) -> None:
    """Fold an adapter into its base, as the base of this run; whole or not at all.

    It is the adapter of the run before (``train.carry=merge``), or that of ``model.name``. It is made once for the
    weights it is made of. The base model stays what ``model.name`` says: distances are measured from it.

    Raises:
        ConfigError: If it would be folded into weights of 4 bits, which loses what they cannot hold.
        RunDirectoryError: If that run has no model, or went on after it was written.
    """
    if config.model.load_in_4bit:
        raise ConfigError(
            "model.load_in_4bit=true cannot hold a base that an adapter was merged into. Fix: --model.load_in_4bit "
            "false, or merge it first (sdft export --merged) and name that folder as model.name."
        )
    run = RunDirectory.create(config.train.output_dir, resume=config.train.resume == "auto")
    with run.claimed():
        merges = start is not None and config.train.carry == "merge"
        digest = start.digest if start is not None and merges else _digest_of(config.model.name)
        card = run.base_path / "README.md"
        if card.is_file() and digest in card.read_text(encoding="utf-8"):
            return
        facts = {"weights": digest}
        if start is not None and merges:
            say(f"merging {start.run.model_path} into {run.base_path}")
            _refuse_older_model(start)
            earlier = load_config(start.run.config_path)
            loaded = load(base_of(start.run, earlier), say)
            model = merge_adapter(PeftModel.from_pretrained(loaded.model, start.run.model_path))
            stops = GenerationConfig.from_pretrained(start.run.model_path).eos_token_id
            settle_generation(model, listed_ids(stops))
            facts |= {"merged": str(start.run.path), "step": str(start.step)}
        else:
            say(f"{config.model.name} is an adapter: merged with its base into {run.base_path}, the base of this run")
            loaded = load(config.model, say)
            model = loaded.model
            settle_generation(model, ())
            facts |= {"merged": config.model.name}
        export_model(model, loaded.tokenizer, run.base_path, config.model.name, facts, {})


def _digest_of(adapter: str) -> str:
    """Return what tells an adapter's weights from others: a digest of a folder's, the name of one on the hub."""
    weights = Path(adapter) / "adapter_model.safetensors"
    return file_digest(weights) if weights.is_file() else f"of {adapter}"


def _refuse_older_model(start: Start) -> None:
    adapter = start.run.model_path / "adapter_model.safetensors"
    if not adapter.is_file():
        raise RunDirectoryError(f"{start.run.path} has no adapter to merge: finish it with --train.resume auto.")
    trained = {
        name.replace(".default.", "."): value for name, value in load_file(weights_file(start.checkpoint)).items()
    }
    written = load_file(adapter)
    if any(name not in trained or not torch.equal(value, trained[name]) for name, value in written.items()):
        raise RunDirectoryError(
            f"{start.run.path} went on after its model/ was written (its checkpoint is of step {start.step}). Fix: "
            "finish it with --train.resume auto."
        )


def take_up_weights(config: RunConfig, start: Start, trainer: Trainer, say: Say) -> None:
    """Put the weights of the run before into a policy that has not been trained yet; a task starts here.

    Every rank must call it. With ``train.carry=merge`` they are in the base already.
    """
    if config.train.carry == "continue":
        load_start(start.checkpoint, trainer.backend, trainer.schedule, with_optimizer=config.train.keep_optimizer)
        say(f"starting from {start.checkpoint}")
    trainer.teacher.start_stage()


def inherit_scores(
    config: RunConfig, sets: Sequence[EvalSet], run: RunDirectory, start: Start | None, origin: str, say: Say
) -> bool:
    """Take scores of the weights this run starts from that another run measured already, on the very same questions.

    Args:
        config: Of this run.
        sets: Its questions.
        run: Where the scores go.
        start: The run that this one goes on from.
        origin: What tells the weights it starts from.
        say: Told where they are from, or that there are none.

    Returns:
        Whether there were any; then they are this run's scores ``before``.
    """
    if start is not None:
        source, stage, mark = start.run, "after", f"step {start.step},"
    elif config.eval.seed_scores is not None:
        source, stage, mark = RunDirectory.open(config.eval.seed_scores), "before", "start base model"
    else:
        return False
    found = read_json(source.eval_summary_path) if source.eval_summary_path.is_file() else {}
    entry = found.get(stage, {})
    if entry.get("identity") != eval_identity(config, sets) or not str(entry.get("weights")).startswith(mark):
        say(f"{source.path} has no scores of these weights on these very questions: they are measured")
        return False
    run.eval_path.mkdir(exist_ok=True)
    for scores in entry["sets"]:
        label = scores["label"]
        shutil.copyfile(source.eval_records_path(stage, label), run.eval_records_path("before", label))
    for completions in source.eval_path.glob("seed_completions-*.jsonl"):
        shutil.copyfile(completions, run.eval_path / completions.name)
    summary = read_json(run.eval_summary_path) if run.eval_summary_path.is_file() else {}
    write_json_atomic(
        run.eval_summary_path, {**summary, "before": {**entry, "weights": origin, "taken_from": str(source.path)}}
    )
    say(f"scores before training are those of {source.path}")
    return True
