"""Key-value slots: one request, one slot; every buffer at a fixed address for the life of the pool.

Shape letters: S slots (row S is the padding slot), H key-value heads, L positions, D head size, N packed
tokens, A layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Cache

from onpolicy_sdft.shapes import pieces

if TYPE_CHECKING:
    from onpolicy_sdft.rollout.attention import SlotKernels
    from onpolicy_sdft.rollout.blending import Pairs


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer caches a position."""

    num_heads: int
    key_size: int
    value_size: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring tokens of one slot within a packed forward."""

    start: int  # first packed token
    count: int
    slot: int
    position: int  # of the first token within the slot


@dataclass(frozen=True, slots=True)
class Packing:
    """Which slot and position each packed token of a forward belongs to."""

    slots_N: torch.Tensor  # [N] int64
    positions_N: torch.Tensor  # [N] int64
    segments: tuple[Segment, ...] | None  # known on the host; None inside a captured step
    rows: int  # B of a [B, Q] grid of tokens; 0 when tokens are packed raggedly

    @staticmethod
    def of(segments: Sequence[Segment], device: torch.device, num_padding: int = 0, padding_slot: int = 0) -> Packing:
        """Lay segments one behind the other.

        Args:
            segments: In order, without gaps.
            device: Of the tensors.
            num_padding: Tokens of padding behind them.
            padding_slot: The row that padding reads and writes.
        """
        segments = [*segments, *_padding(segments, num_padding, padding_slot)]
        counts = [s.count for s in segments]
        slots = np.repeat([s.slot for s in segments], counts)
        positions = np.repeat([s.position - s.start for s in segments], counts) + np.arange(len(slots))
        slots_N, positions_N = torch.from_numpy(np.stack([slots, positions])).to(device)
        return Packing(slots_N, positions_N, tuple(segments), 0)


def _padding(segments: Sequence[Segment], num_padding: int, padding_slot: int) -> list[Segment]:
    """Return segments of padding behind others, none of them longer than the longest of those."""
    end = segments[-1].start + segments[-1].count
    counts = pieces(num_padding, max(segment.count for segment in segments))
    starts = accumulate(counts, initial=end)
    return [Segment(start, count, padding_slot, 0) for start, count in zip(starts, counts, strict=False)]


class SlotCache(Cache):
    """Keys and values of all slots, as the cache object that transformers' attention layers write to.

    ``packing`` says where the tokens of the next forward go; :meth:`update` scatters them there and returns the
    whole buffers, which the attention function indexes itself.

    Args:
        shapes: One per attention layer.
        num_slots: S.
        length: L.
        dtype: Of keys and values.
        device: Where they live.
        kernels: What stores and attends; where it says so keys lie in blocks of some positions, number by number.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        num_slots: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
        kernels: SlotKernels,
    ) -> None:
        super().__init__(layers=[])
        self.num_slots = num_slots
        self.length = length
        self.kernels = kernels
        self.packing: Packing | None = None
        key_block = kernels.key_block

        # Zeros, not empty: 0 times whatever an uninitialised buffer holds may be nan. The last row is for padding.
        def buffer(*shape: int) -> torch.Tensor:
            return torch.zeros(num_slots + 1, *shape, dtype=dtype, device=device)

        # A of [S+1, H, L, D], or of [S+1, H, blocks, D, positions of a block]
        self.keys = [
            buffer(s.num_heads, -(-length // key_block), s.key_size, key_block)
            if key_block
            else buffer(s.num_heads, length, s.key_size)
            for s in shapes
        ]
        self.values = [buffer(s.num_heads, length, s.value_size) for s in shapes]

    @property
    def padding_slot(self) -> int:
        """Index of the row that padding writes to."""
        return self.num_slots

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values, [1, H, N, D], and return the layer's whole buffers."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        k_NHD, v_NHD = key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)
        self.kernels.store(k_NHD.to(keys.dtype), v_NHD.to(values.dtype), keys, values)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are given with every forward."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return 0, as :meth:`get_seq_length`."""
        return 0

    def copy_prefixes(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Copy the first positions of slots to others, in this order: (from, to, positions) each."""
        if not copies:
            return
        came_from: dict[int, int] = {}
        for source, target, _ in copies:
            # What was copied a moment ago is read where it came from, so that all copies can be made at once.
            came_from[target] = came_from.get(source, source)
        device = self.keys[0].device
        sources, targets = (torch.tensor(list(each), device=device) for each in (came_from.values(), came_from.keys()))
        longest = max(length for *_, length in copies)
        num_blocks = -(-longest // self.kernels.key_block) if self.kernels.key_block else longest
        for buffers, count in ((self.keys, num_blocks), (self.values, longest)):
            for buffer in buffers:
                buffer[targets, :, :count] = buffer[sources, :, :count]


def bytes_per_position(shapes: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """Return what one position of one slot takes."""
    width = sum(shape.num_heads * (shape.key_size + shape.value_size) for shape in shapes)
    return width * torch.empty((), dtype=dtype).element_size()


@dataclass
class SlotTexts:
    """What stands in each slot and what was recorded of it, beside its keys and values.

    Shape letters as above; X positions of ``draft_source``, C longest completion and a forward's width more.
    """

    tokens: torch.Tensor  # [S+1, L+1] int64: prompt, completion, drafts; the token at ``lengths`` is pending
    lengths: torch.Tensor  # [S+1] int64: positions whose keys and values are stored
    starts: torch.Tensor  # [S+1] int64: length of the prompt
    limits: torch.Tensor  # [S+1] int64: longest completion
    words: torch.Tensor  # [S+1, 2] int64: noise key words
    draft_source: torch.Tensor  # [S+1, X] int64: texts to look n-grams up in, the completion last
    draft_lengths: torch.Tensor  # [S+1] int64: used part of ``draft_source``
    logprobs: torch.Tensor  # [S+1, C]
    sampling_logprobs: torch.Tensor  # [S+1, C]
    entropies: torch.Tensor  # [S+1, C]
    hidden: torch.Tensor | None = None  # [S+1, C, hidden size]
    top_token_ids: torch.Tensor | None = None  # [S+1, C, K]
    top_logprobs: torch.Tensor | None = None  # [S+1, C, K]
    pairs: Pairs | None = None  # of a call with blended requests

    @staticmethod
    def make(
        num_slots: int, length: int, longest: int, source_length: int, float_dtype: torch.dtype, device: torch.device
    ) -> SlotTexts:
        """Allocate for ``num_slots`` and the padding slot, without what only some calls record."""
        rows = num_slots + 1

        def whole(*shape: int) -> torch.Tensor:
            return torch.zeros(rows, *shape, dtype=torch.int64, device=device)

        def real() -> torch.Tensor:
            return torch.zeros(rows, longest, dtype=float_dtype, device=device)

        return SlotTexts(
            tokens=whole(length + 1), lengths=whole(), starts=whole(), limits=whole(), words=whole(2),
            draft_source=whole(source_length), draft_lengths=whole(),
            logprobs=real(), sampling_logprobs=real(), entropies=real(),
        )  # fmt: skip
