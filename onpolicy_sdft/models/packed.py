"""Attention over packed rows: several texts one behind the other in one row, none of which sees another.

Learning runs through it where ``packing.py`` finds nothing against it. On a GPU in bfloat16 or float16 torch's
variable-length kernel attends all texts at once; elsewhere, and for soft caps and sinks, each text is attended by
itself, which is also what the kernel is tested against.

Shape letters: N packed tokens, C texts of one length, T tokens of a text, H heads, K key-value heads, D head size.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from onpolicy_sdft.models.seam import UnsupportedModel, attention_through, refuse_unknown
from onpolicy_sdft.shapes import round_tokens

if TYPE_CHECKING:
    from onpolicy_sdft.types import MicroBatch

NAME = "sdft_packed"


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer turns queries and keys into weights."""

    scale: float
    window: int  # keys a query sees, itself included; 0: all
    softcap: float  # 0: none
    sinks_H: torch.Tensor | None  # scores without a value
    key_size: int
    value_size: int

    @property
    def is_plain(self) -> bool:
        """Whether scores are products and nothing else."""
        return not self.softcap and self.sinks_H is None


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the texts of a row stand."""

    lengths: list[int]  # of the texts, in order
    positions: torch.Tensor  # [1, N] int64, from 0 in each text
    bounds: torch.Tensor  # [texts + 1] int32, first token of each, and the end
    seen: list[Scoring] | None = None  # filled with how each layer scores; None: not asked

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.lengths)

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> Packing:
        """Lay out texts of some lengths."""
        positions = torch.cat([torch.arange(length) for length in lengths])
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return Packing(list(lengths), positions[None].to(device), bounds.to(device))


def packed_attention(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Send a model's attention here for the length of the context."""
    return attention_through(model, NAME, packed_attention_forward)


def attention_of(batch: MicroBatch, model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return the attention that a micro-batch needs: this one if it is packed, else the model's own.

    Gradient checkpointing computes layers again in the backward pass, so that belongs into the context too.
    """
    return packed_attention(model) if batch.packed_lengths else contextlib.nullcontext()


# Lengths differ in every micro-batch: a compiled layer that looked at them would be compiled again.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend the texts of a row [1, H, N, D], each to itself; the function ``AttentionInterface`` calls.

    Raises:
        UnsupportedModel: If the layer asks for something that is not known here.
    """
    refuse_unknown(module, attention_mask, dropout, is_causal, others)
    if packing is None:
        raise UnsupportedModel("it does not pass keyword arguments on to its attention")
    device = query.device
    if torch.is_autocast_enabled(device.type):  # as torch does for its own attention: rotary positions made them wide
        narrow = torch.get_autocast_dtype(device.type)
        query, key, value = query.to(narrow), key.to(narrow), value.to(narrow)
    sizes = query.shape[-1], value.shape[-1]
    scale = sizes[0] ** -0.5 if scaling is None else float(scaling)
    how = Scoring(scale, int(sliding_window or 0), float(softcap or 0.0), s_aux, *sizes)
    if packing.seen is not None:
        packing.seen.append(how)
    if kernel_takes(device, query.dtype, how):
        return _all_at_once(query, key, value, packing, how), None
    return _text_by_text(query, key, value, packing.lengths, how), None


def kernel_takes(device: torch.device, dtype: torch.dtype, how: Scoring) -> bool:
    """Whether torch's variable-length kernel computes a layer: half precision on Ampere or later, plain scores."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or not how.is_plain:
        return False
    fits = how.key_size == how.value_size and how.key_size <= 256 and how.key_size % 8 == 0
    return fits and torch.cuda.get_device_capability(device) >= (8, 0) and bool(_kernel_options())


@cache
def _kernel_options() -> frozenset[str]:
    """Return the keywords of torch's kernel; none where it cannot do what is needed (before torch 2.11)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    names = frozenset(inspect.signature(varlen_attn).parameters)
    return names if {"scale", "window_size"} <= names else frozenset()


def _all_at_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, how: Scoring
) -> torch.Tensor:
    """Attend with torch's kernel: [1, H, N, D] -> [1, N, H, D]."""
    from torch.nn.attention.varlen import varlen_attn

    q_NHD, k_NKD, v_NKD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    options: dict[str, Any] = {}
    groups = q_NHD.shape[1] // k_NKD.shape[1]
    if groups > 1 and "enable_gqa" in _kernel_options():
        options["enable_gqa"] = True
    elif groups > 1:  # torch 2.11
        k_NKD, v_NKD = (tensor.repeat_interleave(groups, dim=1) for tensor in (k_NKD, v_NKD))
    bounds, longest = packing.bounds, packing.longest
    window = (how.window - 1 if how.window else -1, 0)
    out_NHD = varlen_attn(
        q_NHD, k_NKD, v_NKD, bounds, bounds, longest, longest, scale=how.scale, window_size=window, **options
    )
    assert isinstance(out_NHD, torch.Tensor)  # it was not asked for more
    return out_NHD[None]


def _text_by_text(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Sequence[int], how: Scoring
) -> torch.Tensor:
    """Attend texts one after the other, neighbours of one padded length at once: [1, H, N, D] -> [1, N, H, D].

    Texts are padded to a few lengths (see ``shapes.py``); what stands behind a token it does not see.
    """
    found = []
    parts = zip(*(tensor[0].split(list(lengths), dim=1) for tensor in (query, key, value)), lengths, strict=True)
    for padded, group in groupby(parts, lambda part: round_tokens(part[-1])):
        *tensors, counts = zip(*group, strict=True)
        q, k, v = (torch.stack([F.pad(text, (0, 0, 0, padded - text.shape[1])) for text in texts]) for texts in tensors)
        out_CTHD = _attend(q, k, v, how).transpose(1, 2)
        found += [out_THD[:count] for out_THD, count in zip(out_CTHD, counts, strict=True)]
    return torch.cat(found)[None]


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: Scoring) -> torch.Tensor:
    """Attend texts of one length, each to itself: [C, H, T, D] -> [C, H, T, D]."""
    length = query.shape[2]
    seen_TT = None
    if not how.is_plain or 0 < how.window < length:
        place_T = torch.arange(length, device=query.device)
        back_TT = place_T[:, None] - place_T
        seen_TT = (back_TT >= 0) & (back_TT < (how.window or length))
    if not how.is_plain:
        assert seen_TT is not None
        return _plain_sum(query, key, value, seen_TT, how)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen_TT, is_causal=seen_TT is None, scale=how.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def _plain_sum(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen_TT: torch.Tensor, how: Scoring
) -> torch.Tensor:
    """Attend texts of one length with a soft cap or sinks, their weights in float32 or wider."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * how.scale
    if how.softcap:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    scores = scores.masked_fill(~seen_TT, -torch.inf)
    if how.sinks_H is not None:
        sinks = how.sinks_H.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=wide).to(value.dtype)
    return weights[..., : key.shape[2]] @ value
