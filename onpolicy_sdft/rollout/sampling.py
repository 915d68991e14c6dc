"""The law a token is drawn from, and the draw.

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from onpolicy_sdft.rollout.noise import gumbel_noise

if TYPE_CHECKING:
    from collections.abc import Sequence

#: None of the warpers looks at the text before.
_NO_IDS: Any = None


@dataclass(frozen=True, slots=True)
class SamplingLaw:
    """How logits become the law of the next token; the default is the model's own law."""

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0

    @property
    def is_own_law(self) -> bool:
        """Whether tokens are drawn from the model's law at temperature 1, unprocessed."""
        return self == SamplingLaw()

    def processors(self) -> LogitsProcessorList:
        """Return transformers' own warpers, in its order, for what differs from the model's law."""
        found = LogitsProcessorList()
        if not self.greedy and self.temperature != 1.0:
            found.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k > 0:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            found.append(TopPLogitsWarper(self.top_p))
        if self.min_p > 0.0:
            found.append(MinPLogitsWarper(self.min_p))
        return found


@dataclass(frozen=True, slots=True)
class Draw:
    """One drawn token per row."""

    scores: torch.Tensor  # [B, V] its argmax is the token
    token_ids: torch.Tensor  # [B] int64
    logprobs: torch.Tensor  # [B] at temperature 1, unprocessed, nats
    sampling_logprobs: torch.Tensor  # [B] under the law it was drawn from, nats; 0 when greedy
    entropies: torch.Tensor  # [B] of the temperature-1 law, nats


def draw(
    logits_BV: torch.Tensor,
    law: SamplingLaw,
    processors: LogitsProcessorList,
    words_B2: torch.Tensor,
    positions_B: torch.Tensor,
) -> Draw:
    """Draw the next token of each row from its processed law with its own keyed noise.

    Args:
        logits_BV: The model's logits, float32 or wider.
        law: The sampling law.
        processors: ``law.processors()``, made once.
        words_B2: Noise key words of the rows.
        positions_B: Index of the token within each completion.
    """
    raw_BV = torch.log_softmax(logits_BV, dim=-1)
    entropies_B = -(raw_BV.exp() * raw_BV).nan_to_num_(nan=0.0).sum(-1)
    if law.greedy:
        scores_BV = processed_BV = raw_BV
    else:
        processed_BV = raw_BV
        if len(processors):
            processed_BV = torch.log_softmax(processors(_NO_IDS, logits_BV), dim=-1)
        scores_BV = processed_BV + gumbel_noise(words_B2, positions_B, logits_BV.shape[-1])
    token_ids_B = scores_BV.argmax(-1)
    chosen = token_ids_B[:, None]
    sampling_B = processed_BV.gather(-1, chosen)[:, 0]
    return Draw(
        scores=scores_BV,
        token_ids=token_ids_B,
        logprobs=raw_BV.gather(-1, chosen)[:, 0],
        sampling_logprobs=torch.zeros_like(sampling_B) if law.greedy else sampling_B,
        entropies=entropies_B,
    )


def cut_at_terminator(token_ids: Sequence[int], terminators: frozenset[int], limit: int) -> tuple[int, bool]:
    """Return how many tokens to keep and whether the text ended by itself.

    The first terminator is kept and nothing after it; without one within ``limit`` the text is truncated.
    """
    for index, token in enumerate(token_ids[:limit]):
        if token in terminators:
            return index + 1, True
    return min(len(token_ids), limit), False
