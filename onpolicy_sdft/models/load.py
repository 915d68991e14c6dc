"""Load a tokenizer and a causal language model from the hub, a local path, or an embedded name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from onpolicy_sdft.errors import MissingDependencyError, ModelError
from onpolicy_sdft.models import embedded

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


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its tokenizer, ready for generation and adapters."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str  # what was asked for, as in the config


def resolve_source(config: ModelConfig, report: Callable[[str], None] = lambda text: None) -> str:
    """Turn ``model.name`` into something ``from_pretrained`` takes, fetching an embedded model if need be."""
    if config.name.startswith(embedded.PREFIX):
        cache_dir = Path(config.cache_dir).expanduser() if config.cache_dir else None
        return str(embedded.fetch(config.name.removeprefix(embedded.PREFIX), cache_dir, report))
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
    except (OSError, ValueError) as error:
        raise ModelError(f"Cannot load a tokenizer for model.name={config.name!r}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of {config.name!r} has no end-of-text token, so no answer could ever end. "
            "Set eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id  # harmless: masks, not ids, tell padding from text
    if not tokenizer.chat_template:
        warnings.warn(
            f"{config.name} has no chat template: using 'User: ... Assistant: ...' with the end-of-text token "
            "after each answer. For a base model that is usual; for a chat model, set its template.",
            stacklevel=2,
        )
        tokenizer.chat_template = plain_template(tokenizer)
    return tokenizer


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a chat template for a base model, with the beginning-of-text token where the tokenizer puts it itself."""
    bos = tokenizer.bos_token_id
    begins = bos is not None and tokenizer("text")["input_ids"][:1] == [bos]
    return "{{ bos_token }}" + PLAIN_TEMPLATE if begins else PLAIN_TEMPLATE


def load(config: ModelConfig, report: Callable[[str], None] = lambda text: None) -> LoadedModel:
    """Load model and tokenizer as the config says; a saved adapter is merged into its base.

    Raises:
        ModelError: If the source cannot be loaded, with the value and the way out.
    """
    source = resolve_source(config, report)
    adapter = source if (Path(source) / "adapter_config.json").is_file() else None
    if adapter is not None:
        source = _adapter_base(adapter, config)
    tokenizer = load_tokenizer(adapter or source, config)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            revision=config.revision if adapter is None else None,
            trust_remote_code=config.trust_remote_code,
            dtype=DTYPES[config.dtype],
            attn_implementation=config.attn_implementation,
            **_quantisation(config),
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"Cannot load model.name={config.name!r}: {error}. Give a local path, a hub id, or one of "
            f"{', '.join(embedded.PREFIX + name for name in embedded.EMBEDDED_MODELS)}."
        ) from error
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return LoadedModel(model=model, tokenizer=tokenizer, source=config.name)


def _adapter_base(adapter: str, config: ModelConfig) -> str:
    from dataclasses import replace

    from peft import PeftConfig

    base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if not base:
        raise ModelError(f"{adapter}/adapter_config.json does not name its base model.")
    return resolve_source(replace(config, name=base))


def _quantisation(config: ModelConfig) -> dict[str, Any]:
    if not config.load_in_4bit:
        return {}
    if not torch.cuda.is_available():
        raise ModelError(
            "model.load_in_4bit=true needs a CUDA device and none is here. "
            "Way out: --model.load_in_4bit false (with --model.dtype bfloat16 to save memory)."
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
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = configured if isinstance(configured, list) else [configured]
    ids = [*ids, tokenizer.eos_token_id]
    return tuple(sorted({int(i) for i in ids if i is not None}))
