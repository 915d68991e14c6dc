"""A model object and PEFT's adapters -> what a run loads, and where the model can be loaded from again."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open

from onpolicy_sdft.build.identity import weights_digest
from onpolicy_sdft.config.schema import LoraConfig, ModelConfig
from onpolicy_sdft.errors import ConfigError, ModelError
from onpolicy_sdft.models.complete import refuse_no_numbers
from onpolicy_sdft.models.export import export_model, refuse_foreign
from onpolicy_sdft.models.load import (
    DTYPES,
    LoadedModel,
    load_tokenizer,
    refuse_tokens_beyond,
    settle_tokenizer,
    weight_files,
)

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

#: Options that a model object says itself.
DESCRIBED = ("name", "dtype", "attn_implementation", "load_in_4bit")

#: Fields of PEFT's LoraConfig that are options here; any other has to stand at its default.
_LORA = {
    "r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "target_modules": "target_modules",
    "target_parameters": "target_parameters",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trainable_token_indices",
}
#: Of these PEFT keeps a record, or they change nothing here.
_OF_PEFT = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
}


def num_ranks() -> int:
    """Return how many processes were launched to train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def given_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | str | Path | None, config: ModelConfig
) -> tuple[LoadedModel, ModelConfig]:
    """Return a model object as one that was loaded, and the options that describe it.

    Args:
        model: A causal language model of transformers. It is trained in place.
        tokenizer: Of it, or the path or hub id of that; None: the one at ``model.name_or_path``. A copy is used.
        config: Its other options.

    Raises:
        ModelError: If it carries adapters, is held in a dtype that is not trained here, has weights without values, or
            has no usable tokenizer.
    """
    if isinstance(model, PeftModel):
        raise ModelError(
            "model is a PeftModel: adapters of its own are put on here. Fix: model.merge_and_unload() or its base with "
            "peft_config, or the adapter's folder as model, which is merged into its base."
        )
    layers = model.modules() if hasattr(model, "modules") else ()
    if getattr(model, "_hf_peft_config_loaded", False) or any(isinstance(each, BaseTunerLayer) for each in layers):
        raise ModelError(
            "The model carries adapters, of an earlier training or of a file: new ones would replace them, and nobody "
            "could load the result. Fix: load it afresh, or give the adapter's folder as model: it is merged then."
        )
    if not hasattr(model, "generate") or not hasattr(model, "name_or_path"):
        raise ModelError(f"model is {type(model).__name__}. Fix: a model of transformers, a path, or a hub id.")
    name = str(model.name_or_path or "")
    if tokenizer is None:
        if not name:
            raise ModelError("The model does not say where it came from. Fix: give its tokenizer as well.")
        tokenizer = load_tokenizer(name, dataclasses.replace(config, name=name))
    elif isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(str(tokenizer), dataclasses.replace(config, name=str(tokenizer)))
    elif not hasattr(tokenizer, "apply_chat_template") or not hasattr(tokenizer, "eos_token_id"):
        inner = " (of a processor: processor.tokenizer)" if hasattr(tokenizer, "tokenizer") else ""
        raise ModelError(
            f"tokenizer is {type(tokenizer).__name__}. Fix: a tokenizer of transformers{inner}, its path or hub id, or "
            "none: then it is loaded from where the model came from."
        )
    else:
        tokenizer = copy.deepcopy(tokenizer)
        settle_tokenizer(tokenizer, name or "the model")
    if (empty := next((each for each, weight in model.named_parameters() if weight.is_meta), None)) is not None:
        raise ModelError(
            f"The weight {empty} is on the device 'meta', where it has no values. Fix: load the model with "
            "from_pretrained, without a device_map that leaves weights on disk, or give its path as model."
        )
    if model.dtype not in DTYPES.values():
        raise ModelError(f"The model is held in {model.dtype}. Fix: model.to(torch.bfloat16), or torch.float32.")
    refuse_no_numbers(model.named_parameters(), name or "the model")
    refuse_tokens_beyond(model, tokenizer, name or "the model")
    attention = model.config.get_text_config()._attn_implementation
    described = dataclasses.replace(
        config,
        name=name,
        dtype="bfloat16" if model.dtype == torch.bfloat16 else "float32",
        attn_implementation=None if attention == "sdpa" else attention,
        load_in_4bit=bool(getattr(model, "is_loaded_in_4bit", False)),
    )
    stored = getattr(model.config, "dtype", None)
    model.eval()  # as a loaded one is: whoever trains it sets the mode
    loaded = LoadedModel(model, tokenizer, name, stored if isinstance(stored, torch.dtype) else model.dtype)
    return loaded, described


def is_in_files(model: PreTrainedModel, source: str, revision: str | None = None) -> bool:
    """Whether every weight is in the files that the model says it came from, under its name and the same.

    Weights are compared one by one, so no second model is held. A quantised model is taken at its word: its weights are
    in no file as they are held.
    """
    if getattr(model, "is_quantized", False):
        return bool(source)
    try:
        paths = weight_files(source, revision) if source else []
    except (OSError, ValueError):  # nothing of that name is here
        paths = []
    left = {name: weight.detach() for name, weight in model.named_parameters()}  # one name of those that are tied
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in left.keys() & set(file.keys()):
                stored, mine = file.get_tensor(name), left.pop(name).to("cpu")
                if stored.shape != mine.shape or not torch.equal(stored.to(mine.dtype), mine):
                    return False
    return not left


def name_of_base(given: LoadedModel, config: RunConfig, run: RunDirectory) -> str:
    """Return where a model object can be loaded from again, which is ``base/`` of the run if it is in no files.

    Raises:
        ConfigError: If the run has another base already, or what it is to do needs a model of files.
    """
    if is_in_files(given.model, given.source, config.model.revision):
        remove_left_base(run)
        return given.source
    if num_ranks() > 1 or config.train.init_from is not None:
        what = (
            f"trained by {num_ranks()} processes"
            if num_ranks() > 1
            else "the base of a run that goes on from another run"
        )
        raise ConfigError(
            f"A model that is in no folder as it is cannot be {what}. Fix: save it (save_pretrained) and load it "
            "from there."
        )
    digest, card = weights_digest(given.model), run.base_path / "README.md"
    if not (card.is_file() and digest in card.read_text(encoding="utf-8")):
        if run.manifest_path.is_file():
            raise ConfigError(
                f"{run.base_path} holds another model than the one that is given. Fix: that model to go on with the "
                "run, or another train.output_dir."
            )
        logger.info(f"the model is in no files as it is: it is kept with the run, in {run.base_path}")
        export_model(given.model, given.tokenizer, run.base_path, str(run.base_path), {"weights": digest}, {})
    return str(run.base_path.absolute())


def remove_left_base(run: RunDirectory) -> None:
    """Remove the base that a run which never began has left: it would be taken for the next one's."""
    if run.base_path.is_dir() and not run.manifest_path.is_file():
        refuse_foreign(run.base_path)
        shutil.rmtree(run.base_path)


def lora_options(peft_config: PeftConfig) -> LoraConfig:
    """Return the options of PEFT's LoRA adapters.

    Raises:
        ConfigError: If it is another kind of adapter, or sets what is not supported here.
    """
    if not isinstance(peft_config, PeftLoraConfig):
        raise ConfigError(f"peft_config is {type(peft_config).__name__}. Fix: peft.LoraConfig.")
    plain, given = PeftLoraConfig(), peft_config
    for item in dataclasses.fields(given):
        value = getattr(given, item.name)
        if item.name not in _LORA and item.name not in _OF_PEFT and value != getattr(plain, item.name):
            raise ConfigError(
                f"peft_config.{item.name}={value!r} is not supported. Fix: leave it out; {', '.join(_LORA)} are read."
            )
    options = {ours: getattr(given, theirs) for theirs, ours in _LORA.items()}
    for name in ("target_parameters", "modules_to_save"):
        options[name] = sorted(options[name] or ())
    options["trainable_token_indices"] = options["trainable_token_indices"] or []
    targets = options["target_modules"]
    options["target_modules"] = (
        LoraConfig().target_modules if targets is None else targets if isinstance(targets, str) else sorted(targets)
    )
    return LoraConfig(enabled=True, **options)
