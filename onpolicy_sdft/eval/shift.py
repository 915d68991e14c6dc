"""How alike two answers are: cosine similarity of their sentence embeddings.

Source: Yang et al. (ACL 2024, arXiv:2402.13669), analysis of the distribution shift, and ``eval/eval_similarity.py``
of their code: answers of the tuned and of the seed model to the same prompts, embedded by all-MiniLM-L6-v2.

Shape letters: N texts, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onpolicy_sdft.errors import MissingDependencyError, ModelError

DEFAULT_EMBEDDER = "embedded:all-minilm-l6-v2"


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


def cosine_similarities(first_ND: np.ndarray, second_ND: np.ndarray) -> list[float]:
    """Return the cosine similarity of each pair of rows."""
    lengths_N = np.linalg.norm(first_ND, axis=1) * np.linalg.norm(second_ND, axis=1)
    return [float(value) for value in (first_ND * second_ND).sum(axis=1) / lengths_N]
