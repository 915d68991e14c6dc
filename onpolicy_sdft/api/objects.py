"""Objects in memory -> the options and files of a run: rows, a model, adapters, a check."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoTokenizer

from onpolicy_sdft.config.schema import LoraConfig, ModelConfig
from onpolicy_sdft.errors import ConfigError, DataError, ModelError
from onpolicy_sdft.models.load import DTYPES, LoadedModel, plain_template, refuse_tokens_beyond, weight_files
from onpolicy_sdft.runs.files import write_bytes_atomic
from onpolicy_sdft.tasks.function import CheckFunction, FunctionTask
from onpolicy_sdft.tasks.loading import IN_MEMORY
from onpolicy_sdft.tasks.protocol import Task

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rows = Iterable[Mapping[str, Any]]

#: Fields of PEFT's LoraConfig that are options here; any other has to stand at its default.
_LORA = {
    "r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "use_rslora",
    "target_modules": "target_modules",
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


def kept(rows: Rows) -> Rows:
    """Return rows that can be read more than once: what a generator gives is kept."""
    return list(rows) if isinstance(rows, Iterator) else rows


def write_rows(rows: Rows, path: Path) -> Path:
    """Write rows into a JSON Lines file of the run, which reads them from there like any other data.

    Args:
        rows: A list of dicts, a ``datasets.Dataset``, or anything that gives rows.
        path: Where to. A file with the same rows is left as it is.

    Raises:
        DataError: If there are no rows, or one holds what JSON cannot.
    """
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise DataError(f"rows are given as {type(rows).__name__}. Fix: a list of dicts, or a datasets.Dataset.")
    lines = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError(f"row {number} is {type(row).__name__}, not a dict of columns.")
        try:
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain).encode() + b"\n")
        except (TypeError, ValueError) as error:
            raise DataError(f"row {number} holds what JSON cannot: {error}. Fix: leave that column out.") from error
    if not lines:
        raise DataError("there are no rows.")
    content = b"".join(lines)
    if not (path.is_file() and path.read_bytes() == content):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, content)
    return path


def _plain(value: Any) -> Any:
    """Return a number or list of numpy's or torch's as Python's; nothing else is guessed."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r:.60} is {type(value).__name__}")


def given_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, config: ModelConfig
) -> tuple[LoadedModel, ModelConfig]:
    """Return a model object as one that was loaded, and the options that describe it.

    Args:
        model: A causal language model of transformers. It is trained in place.
        tokenizer: Of it; None: the one at ``model.name_or_path``. A copy is used.
        config: Its other options.

    Raises:
        ModelError: If it carries adapters, is held in a dtype that is not trained here, or has no usable tokenizer.
    """
    if isinstance(model, PeftModel):
        raise ModelError(
            "model is a PeftModel: adapters of its own are put on here. Fix: model.merge_and_unload() or its base with "
            "peft_config, or the adapter's folder as model, which is merged into its base."
        )
    if not hasattr(model, "generate") or not hasattr(model, "name_or_path"):
        raise ModelError(f"model is {type(model).__name__}. Fix: a model of transformers, a path, or a hub id.")
    name = str(model.name_or_path or "")
    if tokenizer is None:
        if not name:
            raise ModelError("The model does not say where it came from. Fix: give its tokenizer as well.")
        tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.eos_token_id is None:
        raise ModelError("The tokenizer has no end-of-text token, so no answer could ever end. Fix: set its eos_token.")
    if not tokenizer.chat_template:
        tokenizer.chat_template = plain_template(tokenizer)
    if model.dtype not in DTYPES.values():
        raise ModelError(f"The model is held in {model.dtype}. Fix: model.to(torch.bfloat16), or torch.float32.")
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
    loaded = LoadedModel(model, tokenizer, name, stored if isinstance(stored, torch.dtype) else model.dtype)
    return loaded, described


def differs_from_files(model: PreTrainedModel, source: str) -> bool:
    """Whether some weight is another than the one of that name in the files the model says it came from.

    Weights are compared one by one, so no second model is held. What the files call otherwise is not compared; nor is
    anything where there are no safetensors files.
    """
    try:
        paths = weight_files(source)
    except (OSError, ValueError):  # nothing of that name is here
        paths = []
    held = model.state_dict()
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                if name in held:
                    stored = file.get_tensor(name)
                    mine = held[name].detach().to("cpu")
                    if stored.shape != mine.shape or not torch.equal(stored.to(mine.dtype), mine):
                        return True
    return False


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
    targets = options["target_modules"]
    options["target_modules"] = (
        LoraConfig().target_modules if targets is None else targets if isinstance(targets, str) else sorted(targets)
    )
    return LoraConfig(enabled=True, **options)


def given_task(task: Task | CheckFunction) -> tuple[str, Task]:
    """Return a task object, or a function that checks, under the name that the run keeps it by.

    The name holds a digest of the source, so that a run is not resumed with another check.
    """
    if isinstance(task, type):
        raise ConfigError(f"task={task.__name__} is a class. Fix: an object of it, {task.__name__}(...).")
    made = cast("Task", task) if hasattr(task, "check") else FunctionTask(cast("Any", task))
    kind = made.function if isinstance(made, FunctionTask) else type(made)
    state = "" if isinstance(made, FunctionTask) else repr(sorted(vars(made).items()))
    digest = hashlib.sha256(f"{_source(kind)} {state}".encode()).hexdigest()[:8]
    return f"{IN_MEMORY}{made.name}-{digest}", made


def _source(found: Any) -> str:
    try:
        return inspect.getsource(found)
    except (OSError, TypeError):  # typed at a prompt
        code = getattr(found, "__code__", None)
        return (
            repr((code.co_code, code.co_consts, code.co_names)) if code else str(getattr(found, "__qualname__", found))
        )
