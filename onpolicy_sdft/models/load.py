"""Load a tokenizer and a causal language model from the hub, a local path, or an embedded name."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.utils import PROCESSOR_NAME
from transformers.utils.hub import LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from onpolicy_sdft.errors import MissingDependencyError, ModelError
from onpolicy_sdft.hub import give_up_early
from onpolicy_sdft.models import embedded
from onpolicy_sdft.models.complete import load_adapter, refuse_incomplete, refuse_no_numbers, refuse_unloadable
from onpolicy_sdft.models.generation import listed_ids
from onpolicy_sdft.models.language import class_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from onpolicy_sdft.config.schema import ModelConfig


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# The newline is written as an expression: a bare one after a block tag would be trimmed. The blank before an answer
# stands at its first word, not in the header: no tokenizer leaves it alone before a word.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


_SAFETENSORS_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_NAMES = f"a local path, a hub id, or one of {', '.join(embedded.PREFIX + name for name in embedded.EMBEDDED_MODELS)}"
_PICKLE = (
    "{source} has its weights in {name}, not in safetensors: a pickle, which may run code of whoever wrote it, and is "
    "not loaded. Fix: if you trust it, load it once with transformers or PEFT and save it with save_pretrained(FOLDER)."
)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its tokenizer, ready for generation and adapters."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str  # what was asked for, as in the config
    stored_dtype: torch.dtype = torch.float32  # of the weights in the model's files, whatever they are held in here


def resolve_source(config: ModelConfig) -> str:
    """Turn ``model.name`` into something ``from_pretrained`` takes, fetching an embedded model if need be.

    Raises:
        ModelError: If it is a run directory.
    """
    if config.name.startswith(embedded.PREFIX):
        cache_dir = Path(config.cache_dir).expanduser() if config.cache_dir else None
        return str(embedded.fetch(config.name.removeprefix(embedded.PREFIX), cache_dir))
    give_up_early()
    folder = Path(config.name)
    if not (folder / "config.json").is_file() and (folder / "manifest.json").is_file():
        trained = folder / "model"
        raise ModelError(
            f"model.name={config.name!r} is a run directory, not a model. Fix: --model.name {trained} to begin with "
            f"what it trained, or --train.init_from {folder} to go on with the next task from it."
        )
    return config.name


def load_tokenizer(source: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer and give it a plain chat template if it has none.

    Raises:
        ModelError: If there is no usable tokenizer, or it has no end-of-text token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # whatever the libraries raise
        fix = _NAMES if isinstance(error, OSError | ValueError) else ""
        refuse_unloadable(error, f"a tokenizer for model.name={config.name!r}", (), fix)
    tokenizer.chat_template = tokenizer.chat_template or _processor_template(source, config.revision)
    settle_tokenizer(tokenizer, config.name)
    return tokenizer


def file_beside(source: str, name: str, revision: str | None) -> Path | None:
    """Return a file that may stand beside a model, of its folder or the hub; None: it is not there."""
    found = cached_file(
        source, name, revision=revision, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if found is None else Path(found)


def _processor_template(source: str, revision: str | None) -> str | None:
    """Return the chat template that models which see pictures may have with their processor; None: there is none."""
    for name in (LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, PROCESSOR_NAME):
        found = file_beside(source, name, revision)
        template = json.loads(found.read_text(encoding="utf-8")).get("chat_template") if found else None
        if template:
            return str(template)
    return None


def settle_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give a tokenizer a plain chat template if it has none.

    Raises:
        ModelError: If it has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of {name!r} has no end-of-text token, so no answer could ever end. "
            "Set eos_token in its tokenizer_config.json."
        )
    if not tokenizer.chat_template:
        warnings.warn(
            f"{name} has no chat template: using 'User: ... Assistant: ...' with the end-of-text token "
            "after each answer. For a base model that is usual; for a chat model, set its template.",
            stacklevel=2,
        )
        tokenizer.chat_template = plain_template(tokenizer)


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a chat template for a base model, with the beginning-of-text token where the tokenizer puts it itself.

    Some tokenizers put a blank before a text, and none where that token is written out: the template writes it then.
    """
    ids = tokenizer("User")["input_ids"]
    if tokenizer.bos_token_id is None or ids[:1] != [tokenizer.bos_token_id]:
        return PLAIN_TEMPLATE
    written = {gap: tokenizer(f"{tokenizer.bos_token}{gap}User", add_special_tokens=False) for gap in ("", " ")}
    gap = next((gap for gap, found in written.items() if found["input_ids"] == ids), "")
    return f"{{{{ bos_token }}}}{gap}{PLAIN_TEMPLATE}"


def load(config: ModelConfig) -> LoadedModel:
    """Load model and tokenizer as the config says; a saved adapter is merged into its base.

    Raises:
        ModelError: If the source cannot be loaded, with the value and the way out.
    """
    source = resolve_source(config)
    tokenizer = load_tokenizer(source, config)
    model, stored = _load_weights(source, config)
    refuse_no_numbers(model.named_parameters(), config.name)
    refuse_tokens_beyond(model, tokenizer, config.name)
    return LoadedModel(model=model, tokenizer=tokenizer, source=config.name, stored_dtype=stored)


def _load_weights(source: str, config: ModelConfig) -> tuple[PreTrainedModel, torch.dtype]:
    """Return a plain model, and the dtype its files hold; adapters that stand on adapters are merged one by one."""
    if is_adapter(source, config.revision):
        base = adapter_base(source, config)
        model, stored = _load_weights(resolve_source(base), base)
        return _merged(model, source, config), stored
    try:
        described = AutoConfig.from_pretrained(
            source, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        model, info = class_for(described).from_pretrained(
            source,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            dtype=DTYPES[config.dtype],
            attn_implementation=None if config.attn_implementation == "sdpa" else config.attn_implementation,
            use_safetensors=True,  # other files are pickles, which may run code of whoever wrote them
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told by name below
            **_quantisation(config),
        )
    except Exception as error:  # whatever the libraries raise
        _refuse_unloadable(error, source, config)
    refuse_incomplete(info, config.name)
    own = described.dtype
    settle_attention(model, config.attn_implementation)
    return model, own if isinstance(own, torch.dtype) else _dtype_in_files(source, config.revision) or model.dtype


def _refuse_unloadable(error: Exception, source: str, config: ModelConfig) -> NoReturn:
    """Say what kept a model from being loaded, and what would load it."""
    if isinstance(error, OSError | ValueError):
        for pickle in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
            if file_beside(source, pickle, config.revision):
                raise ModelError(_PICKLE.format(source=source, name=pickle)) from error
    asked, quantiser = config.attn_implementation, _quantiser(source, config.revision)
    fix = _NAMES if isinstance(error, OSError | ValueError) else ""
    if asked and ("attention" in str(error).lower() or asked in str(error)):
        fix = f"install what it names, or leave --model.attn_implementation {asked} out"
    elif quantiser:
        fix = (
            f"its config.json says that it was quantised by {quantiser}; name the model before that (--model.dtype "
            "bfloat16 or, with a CUDA device, --model.load_in_4bit true saves memory)"
        )
    what, files = f"model.name={config.name!r}", _files_or_none(source, config.revision)
    refuse_unloadable(error, f"{what} with {asked}" if asked else what, files, fix)


def _quantiser(source: str, revision: str | None) -> str:
    """Return which method a model's config names as the one that quantised it; empty: none."""
    with contextlib.suppress(OSError, ValueError):
        found = file_beside(source, "config.json", revision)
        described = json.loads(found.read_text(encoding="utf-8")) if found else {}
        return str((described.get("quantization_config") or {}).get("quant_method") or "")
    return ""


def _files_or_none(source: str, revision: str | None) -> list[Path]:
    with contextlib.suppress(OSError, ValueError, KeyError):  # of a name that is no model's, or a broken index
        return weight_files(source, revision)
    return []


def _dtype_in_files(source: str, revision: str | None) -> torch.dtype | None:
    """Return the dtype of most weights in a model's files, where its config does not say; None for other files."""
    for path in weight_files(source, revision)[:1]:
        with safe_open(path, framework="pt") as file:
            sizes = Counter[str]()
            for key in file.keys():  # noqa: SIM118  # no mapping
                part = file.get_slice(key)
                sizes[part.get_dtype()] += math.prod(part.get_shape())
        return _SAFETENSORS_DTYPES.get(sizes.most_common(1)[0][0])
    return None


def weight_files(source: str, revision: str | None = None) -> list[Path]:
    """Return the safetensors files of a loaded model, of a folder or the hub's cache; none if it has others."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        # What was loaded is there: the hub is not asked, which may take a minute to say that it cannot be reached.
        found = cached_file(
            source, name, revision=revision, local_files_only=True, _raise_exceptions_for_missing_entries=False
        )
        if found is None:
            continue
        path = Path(found)
        if path.suffix != ".json":
            return [path]
        parts = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        return [path.with_name(part) for part in dict.fromkeys(parts)]
    return []


def is_slow_in_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 are emulated there: on a CPU without instructions for them."""
    if device != "cpu":
        return False
    found = getattr(torch.cpu, "_is_avx512_bf16_supported", None), getattr(torch.cpu, "_is_amx_tile_supported", None)
    return None not in found and not any(supported() for supported in found if supported is not None)


def settle_attention(model: PreTrainedModel, asked: str | None = None) -> None:
    """Take eager attention where sdpa would leave out the cap that the config puts on attention scores.

    transformers before 5.20 runs Gemma-2 and its relatives through sdpa, and warns of nothing.

    Args:
        model: As transformers loads it by default, or with the attention that was asked for.
        asked: ``model.attn_implementation``.

    Raises:
        ModelError: If sdpa was asked for and does not compute what the model does.
    """
    text = model.config.get_text_config()
    if text._attn_implementation == "sdpa" and getattr(text, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    if asked == "sdpa" and text._attn_implementation != asked:
        raise ModelError(
            f"model.attn_implementation=sdpa does not compute the attention of {type(model).__name__}. "
            f"Fix: leave the option out: {text._attn_implementation} is taken."
        )


def is_adapter(source: str, revision: str | None = None) -> bool:
    """Whether what is loaded is an adapter: a folder of one, or a hub repository that has nothing else."""
    if Path(source).is_dir():
        return (Path(source) / "adapter_config.json").is_file()
    give_up_early()
    try:
        return find_adapter_config_file(source, revision=revision) is not None
    except (OSError, ValueError):  # no such repository: whoever loads it says so
        return False


def _merged(model: PreTrainedModel, adapter: str, config: ModelConfig) -> PreTrainedModel:
    if not file_beside(adapter, "adapter_model.safetensors", config.revision):
        raise ModelError(_PICKLE.format(source=adapter, name="adapter_model.bin"))

    revision: dict[str, Any] = {} if config.revision is None else {"revision": config.revision}
    merged: PreTrainedModel = load_adapter(model, adapter, **revision).merge_and_unload()
    with contextlib.suppress(OSError):  # an adapter of others has none: its base's holds
        merged.generation_config = GenerationConfig.from_pretrained(adapter, **revision)
    return merged


def adapter_base(adapter: str, config: ModelConfig) -> ModelConfig:
    """Return the model that an adapter names as its base, in the revision it was trained on."""
    from peft import PeftConfig

    revision: dict[str, Any] = {} if config.revision is None else {"revision": config.revision}
    try:
        named = PeftConfig.from_pretrained(adapter, **revision)
    except Exception as error:  # whatever the libraries raise
        refuse_unloadable(error, f"the adapter {adapter}", (), "mend its adapter_config.json, or update peft")
    base = named.base_model_name_or_path
    if not base:
        raise ModelError(
            f"{adapter}/adapter_config.json does not name its base model. Fix: set base_model_name_or_path."
        )
    if not Path(base).is_dir() and (name := embedded.name_of(Path(base))):
        base = embedded.PREFIX + name  # exported where the cache was elsewhere
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ModelError(
            f"The base of the adapter {adapter} was {base}, which is not there. Fix: set base_model_name_or_path in "
            "its adapter_config.json to where the base is now."
        )
    return replace(config, name=base, revision=named.revision)


def refuse_tokens_beyond(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that can write ids the embedding has no row for.

    Raises:
        ModelError: With both numbers.
    """
    rows: Any = model.get_input_embeddings()
    size = int(getattr(rows, "num_embeddings", 0)) or len(rows.weight)  # weights that are divided have no rows here
    vocabulary = tokenizer.get_vocab()
    token = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[token] >= size:
        beyond = sum(i >= size for i in vocabulary.values())
        raise ModelError(
            f"The tokenizer of {name!r} has {beyond} tokens without a row in the embedding: ids up to "
            f"{vocabulary[token]} ({token!r}), and the embedding has {size} rows. Fix: take the added tokens out of "
            f"the tokenizer, or resize once and save: model.resize_token_embeddings({vocabulary[token] + 1})."
        )


def _quantisation(config: ModelConfig) -> dict[str, Any]:
    if not config.load_in_4bit:
        return {}
    if not torch.cuda.is_available():
        raise ModelError(
            "model.load_in_4bit=true needs a CUDA device and none is here. "
            "Fix: --model.load_in_4bit false (with --model.dtype bfloat16 to save memory)."
        )
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "model.load_in_4bit=true needs bitsandbytes: pip install 'onpolicy_sdft[bitsandbytes]'."
        ) from error
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": quantisation}


def terminator_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token id that ends an answer: all of the generation config's, and the tokenizer's own."""
    configured = None if model.generation_config is None else model.generation_config.eos_token_id
    return tuple(sorted({*listed_ids(configured), *listed_ids(tokenizer.eos_token_id)}))
