"""Other examples for a k-shot teacher context, by seed or by word overlap."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix

from onpolicy_sdft.types import Demonstration


def choose_neighbours(
    demonstrations: Sequence[Demonstration],
    num_neighbours: int,
    how: Literal["random", "nearest"],
    seed: int,
) -> list[tuple[int, ...]]:
    """Choose other examples for each demonstration, never itself nor one that asks the same (up to case and blanks).

    Args:
        demonstrations: The data set.
        num_neighbours: How many others for each; fewer where the set has no more.
        how: ``random`` draws by (seed, example id); ``nearest`` takes the largest Jaccard overlap of the words
            of the prompts, the best one last (next to the question).
        seed: For ``random``.

    Returns:
        Indices into ``demonstrations``, one tuple each.
    """
    if num_neighbours == 0:
        return [()] * len(demonstrations)
    found = []
    overlap = _overlap(demonstrations) if how == "nearest" else None
    prompts = [" ".join(demonstration.prompt.casefold().split()) for demonstration in demonstrations]
    for index, demonstration in enumerate(demonstrations):
        if overlap is not None:
            ranked = np.argsort(-overlap(index), kind="stable").tolist()
        else:
            generator = random.Random(f"neighbours-{seed}-{demonstration.example_id}")
            # A few spares: some draws may be the example itself or share its prompt.
            ranked = generator.sample(range(len(demonstrations)), min(len(demonstrations), num_neighbours + 8))
        others = [other for other in ranked if prompts[other] != prompts[index]]
        if len(others) < num_neighbours and len(ranked) < len(demonstrations):  # one prompt stands in many rows
            ranked = generator.sample(range(len(demonstrations)), len(demonstrations))
            others = [other for other in ranked if prompts[other] != prompts[index]]
        found.append(tuple(reversed(others[:num_neighbours])))
    return found


class _Overlap:
    def __init__(self, prompts: Sequence[str]) -> None:
        words = [sorted(set(re.findall(r"\w+", prompt.lower()))) for prompt in prompts]
        vocabulary = {word: column for column, word in enumerate(sorted({w for ws in words for w in ws}))}
        rows = np.repeat(np.arange(len(words)), [len(ws) for ws in words])
        columns = np.array([vocabulary[word] for ws in words for word in ws], dtype=np.int64)
        shape = (len(words), max(1, len(vocabulary)))
        self.matrix = csr_matrix((np.ones(len(columns)), (rows, columns)), shape=shape)
        self.sizes = np.array([len(ws) for ws in words], dtype=np.float64)

    def __call__(self, index: int) -> np.ndarray:
        common = np.asarray((self.matrix @ self.matrix[index].T).todense()).ravel()
        overlap: np.ndarray = common / np.maximum(self.sizes + self.sizes[index] - common, 1.0)
        return overlap


def _overlap(demonstrations: Sequence[Demonstration]) -> _Overlap:
    return _Overlap([demonstration.prompt for demonstration in demonstrations])
