"""The base model of a run: the adapter switched off, a second copy, or earlier tasks merged in."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import GenerationConfig

from onpolicy_sdft.build.identity import STOP_TOKENS, digest_of, model_identity
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.models.complete import load_adapter
from onpolicy_sdft.models.embedded import PREFIX
from onpolicy_sdft.models.export import export_model, merge_adapter
from onpolicy_sdft.models.generation import listed_ids, settle_generation
from onpolicy_sdft.models.load import is_adapter, load
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import differences, file_digest, read_json
from onpolicy_sdft.train.checkpoint import weights_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onpolicy_sdft.config.schema import ModelConfig, RunConfig

logger = logging.getLogger(__name__)


@contextmanager
def adapter_off(model: PeftModel) -> Iterator[PreTrainedModel]:
    """Give the base model of a LoRA run: the same weights without the adapter."""
    with model.disable_adapter():
        yield inner_model(model)


@dataclass(frozen=True, slots=True)
class Beside:
    """The base model beside a model at hand."""

    opened: Callable[[], AbstractContextManager[PreTrainedModel]]
    identity: str  # of its weights and config


def base_beside(
    config: RunConfig, model: PreTrainedModel | PeftModel, run: RunDirectory, *, untrained: bool = False
) -> Beside:
    """Return what gives the base model: the adapter off, or a second copy for full fine-tuning.

    Args:
        config: Names the base model.
        model: The model at hand.
        run: That trained it, or trains it.
        untrained: Whether it is still the base model itself.

    Raises:
        RunDirectoryError: If another model stands where the base model was.
    """
    recorded = _recorded_base(run)
    recorded.pop(STOP_TOKENS, None)
    if isinstance(model, PeftModel) and not is_merged(config):
        # A run of an earlier version has no record; its adapter then is part of what tells the base from others.
        return Beside(lambda: adapter_off(model), digest_of(recorded or model_identity(inner_model(model))))
    goes_on = config.train.init_from is not None  # what it starts from is no base model any more
    if untrained and not goes_on and not isinstance(model, PeftModel):
        return Beside(lambda: nullcontext(model), digest_of(recorded or model_identity(model)))
    base = load(config.model).model
    found = model_identity(base)
    if recorded and not is_merged(config):  # of a run on a merged base, that is what the record tells
        refuse_other_base(run, config.model.name, found)
    base.to(model.device)  # type: ignore[arg-type]  # as in load_bundle

    @contextmanager
    def second_copy() -> Iterator[PreTrainedModel]:
        yield base

    return Beside(second_copy, digest_of(found))


def refuse_other_base(run: RunDirectory, name: str, found: Mapping[str, Any]) -> None:
    """Refuse another base model than a run was trained on, under the same name.

    Args:
        run: The run.
        name: Of what was loaded.
        found: :func:`~onpolicy_sdft.build.identity.base_identity` of it, or ``model_identity`` alone.

    Raises:
        RunDirectoryError: Naming what differs.
    """
    recorded = _recorded_base(run)
    if STOP_TOKENS not in found:
        recorded.pop(STOP_TOKENS, None)
    differing = differences(recorded, found) if recorded else {}
    if not differing:
        return
    text = f"{name} is not what {run.path} was trained on: another {', '.join(differing)}"
    trained_with = read_json(run.manifest_path)["versions"]["transformers"]
    if trained_with != transformers.__version__:  # which may hold the same weights in other parameters
        logger.warning(f"{text}, or only held otherwise by transformers {transformers.__version__} than {trained_with}")
        return
    raise RunDirectoryError(f"{text}. Fix: put that model back.")


def _recorded_base(run: RunDirectory) -> dict[str, Any]:
    """Return what a run's record says of its base model; nothing if it says nothing."""
    return dict(read_json(run.manifest_path).get("base", {})) if run.manifest_path.is_file() else {}


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


def has_base(config: RunConfig) -> bool:
    """Whether a run's adapter stands on a base of its own: a task before, or a model that is an adapter, merged.

    An adapter on a base that is an adapter itself would be loaded without it, by PEFT and whoever uses that.
    """
    return config.lora.enabled and (is_merged(config) or _is_on_adapter(config))


def is_merged(config: RunConfig) -> bool:
    """Whether earlier tasks are merged into the base that a run's adapter stands on."""
    return config.train.init_from is not None and config.train.adapter_handoff == "merge"


def _is_on_adapter(config: RunConfig) -> bool:
    return not config.model.name.startswith(PREFIX) and is_adapter(config.model.name, config.model.revision)


def base_of(run: RunDirectory, config: RunConfig) -> ModelConfig:
    """Return the model that a run's adapter stands on: its own merged base where it has one, else the base model.

    Raises:
        RunDirectoryError: If the base is gone.
    """
    if not run.base_path.is_dir():
        if not (config.lora.enabled and is_merged(config)):
            return config.model  # an adapter is merged when it is loaded
        raise RunDirectoryError(
            f"{run.base_path} is not there, and the adapter of that run means nothing without it. Fix: put it "
            "back, or train that run again."
        )
    return dataclasses.replace(config.model, name=str(run.base_path), revision=None)


def make_base(config: RunConfig, start: Start | None) -> None:
    """Fold an adapter into its base, as the base of this run; whole or not at all.

    It is the adapter of the run before (``train.adapter_handoff=merge``), or that of ``model.name``. It is made once
    for the weights it is made of. The base model stays what ``model.name`` says: distances are measured from it.

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
        merges = start is not None and config.train.adapter_handoff == "merge"
        digest = start.digest if start is not None and merges else _digest_of(config.model.name)
        card = run.base_path / "README.md"
        if card.is_file() and digest in card.read_text(encoding="utf-8"):
            return
        facts = {"weights": digest}
        if start is not None and merges:
            logger.info(f"merging {start.run.model_path} into {run.base_path}")
            earlier = load_config(start.run.config_path)
            loaded = load(base_of(start.run, earlier))
            refuse_other_base(start.run, loaded.source, model_identity(loaded.model))
            model = merge_adapter(_last_model(start, loaded.model))
            stops = GenerationConfig.from_pretrained(start.run.model_path).eos_token_id
            settle_generation(model, listed_ids(stops))
            facts |= {"merged": str(start.run.path), "step": str(start.step)}
        else:
            logger.info(
                f"{config.model.name} is an adapter: merged with its base into {run.base_path}, the base of this run"
            )
            loaded = load(config.model)
            model = loaded.model
            settle_generation(model, ())
            facts |= {"merged": config.model.name}
        export_model(model, loaded.tokenizer, run.base_path, config.model.name, facts, {})


def _digest_of(adapter: str) -> str:
    """Return what tells an adapter's weights from others: a digest of a folder's, the name of one on the hub."""
    weights = Path(adapter) / "adapter_model.safetensors"
    return file_digest(weights) if weights.is_file() else f"of {adapter}"


def _last_model(start: Start, base: PreTrainedModel) -> PeftModel:
    """Return the model that a run exported, if that is what its last checkpoint holds."""
    if not (start.run.model_path / "adapter_config.json").is_file():
        raise RunDirectoryError(f"{start.run.path} has no adapter to merge: finish it with --train.resume auto.")
    model = load_adapter(base, start.run.model_path)
    written = dict(model.named_parameters())
    trained = load_file(weights_file(start.checkpoint))
    if any(name not in written or not torch.equal(written[name].cpu(), value) for name, value in trained.items()):
        raise RunDirectoryError(
            f"{start.run.path} went on after its model/ was written (its checkpoint is of step {start.step}). Fix: "
            "finish it with --train.resume auto."
        )
    return model
