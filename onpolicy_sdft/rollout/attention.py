"""The attention seam: the function transformers' layers call during a rollout, over KV slots.

It is registered with ``AttentionInterface`` once and does nothing of its own; the rollout it belongs to travels
through the model's keyword arguments. Several implementations store and attend: the CPU's (``cpu/``), the GPU's
(``gpu/``), and the plain sum of this file, which runs everywhere, in any dtype, and is what they are tested against.

Shape letters: N packed tokens, S slots, H key-value heads, G query heads a key-value head, L positions, D head
size, E size of a value, B rows, Q tokens of a row, W keys of a block.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from einops import rearrange

from onpolicy_sdft.models.seam import UnsupportedModel, attention_through, refuse_unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onpolicy_sdft.rollout.slots import Packing, SlotCache

NAME = "sdft_slots"
#: Implementations: ``cpu``: compiled by numba; ``triton``: for GPUs; ``torch``: the plain sum, everywhere.
KernelName = Literal["cpu", "triton", "torch"]
_BLOCK = 256  # keys the plain sum looks at at once


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer turns queries and keys into weights."""

    scale: float
    window: int  # keys a query sees, itself included; 0: all
    softcap: float  # 0: none
    sinks: torch.Tensor | None  # [heads] scores without a value


class SlotKernels(Protocol):
    """An implementation: it stores and attends the tokens of one packing after another."""

    name: KernelName
    key_block: int  # positions of a block of keys in the cache; 0: keys are not in blocks
    seconds: float  # spent attending, where the host waits for it

    def begin(self, packing: Packing) -> None:
        """Take the packing of the next forward; what is the same in all layers is worked out once."""
        ...

    def store(
        self, k_NHD: torch.Tensor, v_NHE: torch.Tensor, keys_SHLD: torch.Tensor, values_SHLE: torch.Tensor
    ) -> None:
        """Store new keys and values where the packing says."""
        ...

    def attend(
        self, q_NHGD: torch.Tensor, keys_SHLD: torch.Tensor, values_SHLE: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Attend every packed token to what its slot holds up to its own position: -> [N, H, G, E]."""
        ...


@dataclass
class SlotAttention:
    """One rollout's attention: its cache, and what it saw of each layer."""

    cache: SlotCache
    seen: list[Scoring] = field(default_factory=list)  # layer by layer, filled while ``watching``
    watching: bool = False

    @property
    def kernels(self) -> SlotKernels:
        """The implementation."""
        return self.cache.kernels

    def begin(self, packing: Packing) -> None:
        """Take the packing of the next forward."""
        self.cache.packing = packing
        self.kernels.begin(packing)


def slot_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    slots: SlotAttention | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend packed queries [1, heads, N, D] over slot buffers; the function ``AttentionInterface`` calls.

    Raises:
        UnsupportedModel: If the layer asks for something that is not known here.
    """
    refuse_unknown(module, attention_mask, dropout, is_causal, others)
    if slots is None:
        raise UnsupportedModel("it does not pass keyword arguments on to its attention")
    num_heads = key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    scoring = Scoring(scale, int(sliding_window or 0), float(softcap or 0.0), s_aux)
    if slots.watching:
        slots.seen.append(scoring)
    # "(h g) n d -> n h g d" and "n h g d -> 1 n (h g) d": einops would take a tenth of a decode step's attention.
    q_NHGD = query[0].unflatten(0, (num_heads, -1)).permute(2, 0, 1, 3)
    out_NHGD = slots.kernels.attend(q_NHGD, key, value, scoring)
    return out_NHGD.flatten(1, 2)[None].to(query.dtype), None


def slot_attention_on(model: PreTrainedModel) -> contextlib.AbstractContextManager[None]:
    """Send a model's attention here for the length of the context."""
    return attention_through(model, NAME, slot_attention_forward)


@dataclass(frozen=True, slots=True)
class _Grid:
    """A packing as rows of equally many tokens; the shorter ones repeat their last."""

    token_BQ: torch.Tensor | None  # [B, Q] int64 packed token at each place; None: they lie there in this order
    place_N: torch.Tensor | None  # [N] int64 place of each packed token; None: the same
    slots_B: torch.Tensor
    positions_BQ: torch.Tensor
    length: int  # keys there can be


class TorchKernels:
    """The plain sum in torch operations, over all rows at once, a block of keys after the other.

    Args:
        length: L.
    """

    name: KernelName = "torch"
    key_block = 0
    seconds = 0.0

    def __init__(self, length: int) -> None:
        self.length = length
        self._packing: Packing | None = None
        self._grid: _Grid | None = None

    def begin(self, packing: Packing) -> None:
        """Lay the packing out as a grid."""
        self._packing, self._grid = packing, _grid(packing, self.length)

    def store(
        self, k_NHD: torch.Tensor, v_NHE: torch.Tensor, keys_SHLD: torch.Tensor, values_SHLE: torch.Tensor
    ) -> None:
        """Store new keys and values where the packing says."""
        assert self._packing is not None
        where = (self._packing.slots_N, slice(None), self._packing.positions_N)
        keys_SHLD[where], values_SHLE[where] = k_NHD, v_NHE

    def attend(
        self, q_NHGD: torch.Tensor, keys_SHLD: torch.Tensor, values_SHLE: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Attend every packed token: -> [N, H, G, E]. Reads nothing on the host."""
        grid = self._grid
        assert grid is not None
        q_NHGD = q_NHGD if grid.token_BQ is None else q_NHGD[grid.token_BQ.flatten()]
        q_BHQGD = rearrange(q_NHGD, "(b q) h g d -> b h q g d", b=len(grid.slots_B))
        out_BHQGE = plain_attention(
            q_BHQGD, keys_SHLD, values_SHLE, grid.slots_B, grid.positions_BQ, scoring, min(grid.length, self.length)
        )
        out_NHGE = rearrange(out_BHQGE, "b h q g e -> (b q) h g e").to(q_NHGD.dtype)
        return out_NHGE if grid.place_N is None else out_NHGE[grid.place_N]


def _grid(packing: Packing, length: int) -> _Grid:
    device = packing.slots_N.device
    if packing.rows:
        slots_BQ = packing.slots_N.unflatten(0, (packing.rows, -1))
        return _Grid(None, None, slots_BQ[:, 0], packing.positions_N.unflatten(0, (packing.rows, -1)), length)
    assert packing.segments is not None
    width = max(s.count for s in packing.segments)
    token_BQ = torch.tensor([[s.start + min(i, s.count - 1) for i in range(width)] for s in packing.segments])
    place_N = torch.tensor([row * width + i for row, s in enumerate(packing.segments) for i in range(s.count)])
    token_BQ, place_N = token_BQ.to(device), place_N.to(device)
    longest = max(s.position + s.count for s in packing.segments)
    return _Grid(token_BQ, place_N, packing.slots_N[token_BQ[:, 0]], packing.positions_N[token_BQ], longest)


def plain_attention(
    q_BHQGD: torch.Tensor,
    keys_SHLD: torch.Tensor,
    values_SHLE: torch.Tensor,
    slots_B: torch.Tensor,
    positions_BQ: torch.Tensor,
    how: Scoring,
    length: int,
) -> torch.Tensor:
    """Attend rows of queries to the keys of their slots, up to their own positions, in float32 or wider.

    Args:
        q_BHQGD: Queries.
        keys_SHLD: Of all slots, as ``values_SHLE``; what stands beyond the last position of a row may be nan.
        values_SHLE: See ``keys_SHLD``.
        slots_B: Slot of each row.
        positions_BQ: Position of each query.
        how: Scale, window, soft cap and sinks.
        length: Positions to look at, beyond every query's.

    Returns:
        [B, H, Q, G, E].
    """
    wide = torch.float64 if q_BHQGD.dtype == torch.float64 else torch.float32
    q_BHQGD = q_BHQGD.to(wide) * how.scale
    shape = q_BHQGD.shape[:-1]
    largest = torch.full((*shape, 1), -torch.inf, dtype=wide, device=q_BHQGD.device)
    total, sums = torch.zeros_like(largest), q_BHQGD.new_zeros(*shape, values_SHLE.shape[-1])
    for first in range(0, length, _BLOCK):
        end = min(length, first + _BLOCK)
        place_W = torch.arange(first, end, device=q_BHQGD.device)
        seen_BQW = place_W <= positions_BQ[..., None]
        if how.window:
            seen_BQW = seen_BQW & (place_W > positions_BQ[..., None] - how.window)
        k_BHWD, v_BHWE = keys_SHLD[slots_B, :, first:end].to(wide), values_SHLE[slots_B, :, first:end].to(wide)
        scores = torch.einsum("bhqgd,bhwd->bhqgw", q_BHQGD, k_BHWD)
        if how.softcap:
            scores = how.softcap * torch.tanh(scores / how.softcap)
        scores = scores.masked_fill(~seen_BQW[:, None, :, None], -torch.inf)
        larger = torch.maximum(largest, scores.amax(-1, keepdim=True))
        safe = larger.masked_fill(larger == -torch.inf, 0.0)
        weights, shrink = (scores - safe).exp(), (largest - safe).exp()
        # A masked value is multiplied by 0, and 0 times nan is nan: stale values must not reach the product.
        v_BHWE = v_BHWE.masked_fill(~seen_BQW.any(1)[:, None, :, None], 0.0)
        total = total * shrink + weights.sum(-1, keepdim=True)
        sums = sums * shrink + torch.einsum("bhqgw,bhwe->bhqge", weights, v_BHWE)
        largest = larger
    if how.sinks is not None:
        sinks_HG = how.sinks.reshape(q_BHQGD.shape[1], -1).to(wide)
        total = total + (sinks_HG[None, :, None, :, None] - largest).exp()
    return sums / total
