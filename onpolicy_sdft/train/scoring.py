"""How likely the model finds given tokens behind a prompt: one forward over packed rows, no gradient.

Shape letters: N loss tokens, C tokens of a chunk, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from onpolicy_sdft.rollout.sampling import CHUNK, logprobs_at
from onpolicy_sdft.types import TrainingRow

if TYPE_CHECKING:
    from onpolicy_sdft.models.policy import Head
    from onpolicy_sdft.models.weights import PolicyWeights
    from onpolicy_sdft.train.pairing import Pairing


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores tokens under the weights that are shown at the moment.

    Args:
        weights: What is read while they are shown.
        pairing: Groups rows into forwards.
        device: Where they run.
        num_halvings: Tells how often memory ran out: forwards are of so many times half the tokens.
    """

    weights: PolicyWeights
    pairing: Pairing
    device: torch.device | str
    num_halvings: Callable[[], int] = lambda: 0

    def __call__(self, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, ...]]:
        """Return log p of each target token, in nats at temperature 1.

        Args:
            texts: Prompt and target of each, as token ids.
        """
        rows = [TrainingRow(prompt, target) for prompt, target in texts]
        places = {id(row): index for index, row in enumerate(rows)}
        found: list[tuple[float, ...]] = [()] * len(rows)
        head = self.weights.head() if rows else None
        for group in self.pairing.split([row for row in rows if row.target_ids], self.num_halvings()):
            batch = self.pairing.batch(group, self.device)
            assert head is not None
            logprobs = _logprobs(self.weights.score(batch), head, batch.labels).tolist()
            for row in batch.rows:
                found[places[id(row)]] = tuple(logprobs[: len(row.target_ids)])
                del logprobs[: len(row.target_ids)]
        return found


@torch.no_grad()
def _logprobs(hidden_ND: torch.Tensor, head: Head, labels_N: torch.Tensor) -> torch.Tensor:
    found = []
    for hidden_CD, labels_C in zip(hidden_ND.split(CHUNK), labels_N.split(CHUNK), strict=True):
        found.append(logprobs_at(head.logits(hidden_CD.to(head.weight_VD.dtype)), labels_C))
    return torch.cat(found)
