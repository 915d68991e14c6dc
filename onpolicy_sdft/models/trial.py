"""Whether a model computes with a replaced attention what it computes by itself: a few short texts tell.

Shape letters: D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from onpolicy_sdft.models.lora import embedding_weight
from onpolicy_sdft.models.policy import body

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
_LARGEST_TOLERANCE = 0.5  # a mask or a position that is wrong is further off than this
_LENGTHS = (5, 9, 12)


def texts(vocab_size: int) -> list[tuple[int, ...]]:
    """Return short texts of ids from all over the vocabulary: the first ids are often special, and never trained."""
    ids = [(12_345 + 7_919 * place) % vocab_size for place in range(sum(_LENGTHS))]
    ends = list(accumulate(_LENGTHS))
    return [tuple(ids[end - length : end]) for end, length in zip(ends, _LENGTHS, strict=True)]


def own_hidden(model: PreTrainedModel, text: tuple[int, ...], disturbance: float = 0.0) -> torch.Tensor:
    """Return the final hidden state [D] behind a text, with its embeddings disturbed relatively by so much."""
    ids = torch.tensor([text], device=embedding_weight(model).device)
    asked = {"input_ids": ids}
    if disturbance:
        embedded = model.get_input_embeddings()(ids)
        noise = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0)).to(embedded.device)
        asked = {"inputs_embeds": embedded * (1 + disturbance * noise).to(embedded.dtype)}
    hidden: torch.Tensor = body(model)(**asked, use_cache=False).last_hidden_state[0, -1]
    return hidden


def how_far_off(
    model: PreTrainedModel,
    tried: Sequence[tuple[int, ...]],
    found: Iterable[torch.Tensor],
    own: Sequence[torch.Tensor],
    dtype: torch.dtype | None = None,
) -> float:
    """Return how far hidden states are off a model's own, relatively; 0 where rounding explains it.

    Args:
        model: The model.
        tried: The texts.
        found: Hidden state behind each text, computed another way.
        own: The model's own, see :func:`own_hidden`.
        dtype: What is computed in; None: the dtype of the weights, bfloat16 for those of 4 bits.
    """
    # The embedding of a model in 4 bits is float32, and its layers compute in bfloat16 (models/load.py).
    in_4bit = getattr(model, "is_loaded_in_4bit", False)
    dtype = dtype or (torch.bfloat16 if in_4bit else embedding_weight(model).dtype)
    middle = _middle_distance(found, own)
    if middle < _TOLERANCE[dtype] or middle < min(_LARGEST_TOLERANCE, 3 * _rounding(model, tried, own, dtype)):
        return 0.0
    return middle


def _middle_distance(found: Iterable[torch.Tensor], own: Sequence[torch.Tensor]) -> float:
    """Return the median relative distance: in bfloat16 one text may be sent to other experts."""
    pairs = zip(found, own, strict=True)
    distances: list[float] = sorted(((mine - theirs).norm() / theirs.norm()).item() for mine, theirs in pairs)
    return distances[len(own) // 2]


def _rounding(
    model: PreTrainedModel, tried: Sequence[tuple[int, ...]], own: Sequence[torch.Tensor], dtype: torch.dtype
) -> float:
    """Return the median distance that rounding of the embeddings alone makes: in some trained models it grows a lot."""
    if dtype not in (torch.bfloat16, torch.float16):
        return 0.0
    return _middle_distance([own_hidden(model, text, torch.finfo(dtype).eps) for text in tried], own)
