"""Attention over KV slots on a GPU: each key and value is read once, up to the length of its slot, for all its queries.

A tile is a few tokens of one slot with one key-value head; its query rows are tokens x G. Where there are fewer tiles
than the card has processors, the keys of a tile are split and a second kernel puts the parts together.

The plain sum it is tested against is ``attention.plain_attention``.

Shape letters: N packed tokens, S slots, H key-value heads, G query heads a key-value head, L positions of a slot,
D head size, W tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from onpolicy_sdft.rollout.attention import KernelName, Scoring
    from onpolicy_sdft.rollout.slots import Packing, Segment

_MOST_ROWS = 64  # query rows of a tile
_LEAST_ROWS = 16  # of a product on tensor cores
_LEAST_SPLIT_KEYS = 256  # a part of fewer keys costs more than it saves
_MOST_SPLITS = 16
_SHARED_MEMORY = 101_376  # bytes a block may have on the smallest supported cards, where the driver does not say


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def _place(tile, WIDTH: tl.constexpr, TOKENS: tl.constexpr):
    """Return the first packed token of a tile of a grid, and how many it has: a slot may need several tiles."""
    each = tl.cdiv(WIDTH, TOKENS)
    offset = tile % each * TOKENS
    return (tile // each * WIDTH + offset).to(tl.int64), tl.minimum(TOKENS, WIDTH - offset)


@triton.jit
def attend_tiles(
    q_ptr, keys_ptr, values_ptr, tiles_ptr, slots_ptr, positions_ptr, sinks_ptr, out_ptr, largest_ptr, total_ptr,
    scale, softcap, window, q_n, q_h, q_g, k_s, k_h, k_l, v_s, v_h, v_l, out_n, out_h, out_g,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr, SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend one tile to one part of its keys. In a grid a slot has ``WIDTH`` tokens; 0: tiles are listed.

    With ``SPLITS`` > 1, ``out`` is a float32 buffer of unscaled parts [W, H, SPLITS, ROWS, EP], and the largest score
    and the sum of each row go beside it.
    """
    tile, head, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    if WIDTH > 0:
        start, count = _place(tile, WIDTH, TOKENS)
        slot = tl.load(slots_ptr + start)
        first = tl.load(positions_ptr + start).to(tl.int32)
    else:
        start = tl.load(tiles_ptr + tile * 4)
        count = tl.load(tiles_ptr + tile * 4 + 1).to(tl.int32)
        slot = tl.load(tiles_ptr + tile * 4 + 2)
        first = tl.load(tiles_ptr + tile * 4 + 3).to(tl.int32)
    row = tl.arange(0, ROWS)
    token, group = row // G, row % G
    live = token < count
    d, e = tl.arange(0, DP), tl.arange(0, EP)
    d_inside, e_inside = d < D, e < E
    q = tl.load(
        q_ptr + (start + token)[:, None] * q_n + head * q_h + group[:, None] * q_g + d[None],
        mask=live[:, None] & d_inside[None], other=0.0,
    )  # fmt: skip
    position, last = first + token, first + count
    begin = tl.where(window > 0, tl.maximum(first - window + 1, 0) // KEYS * KEYS, 0)
    end = last
    if SPLITS > 1:
        each = tl.cdiv(tl.cdiv(last - begin, SPLITS), KEYS) * KEYS
        begin = begin + part * each
        end = tl.minimum(last, begin + each)
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, EP], tl.float32)
    keys_base = keys_ptr + slot * k_s + head * k_h
    values_base = values_ptr + slot * v_s + head * v_h
    for at in range(begin, end, KEYS):
        place = at + tl.arange(0, KEYS)
        there = place < end
        k = tl.load(keys_base + place[None] * k_l + d[:, None], mask=there[None] & d_inside[:, None], other=0.0)
        score = tl.dot(q, k, input_precision=PRECISION).to(tl.float32) * scale
        if SOFTCAP:
            score = softcap * _tanh(score / softcap)
        seen = (place[None] <= position[:, None]) & there[None]
        seen = seen & ((place[None] > position[:, None] - window) | (window == 0))
        score = tl.where(seen, score, -float("inf"))
        larger = tl.maximum(largest, tl.max(score, 1))
        safe = tl.where(larger == -float("inf"), 0.0, larger)
        weight = tl.exp(score - safe[:, None])
        shrink = tl.exp(largest - safe)
        v = tl.load(values_base + place[:, None] * v_l + e[None], mask=there[:, None] & e_inside[None], other=0.0)
        total = total * shrink + tl.sum(weight, 1)
        sums = sums * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision=PRECISION).to(tl.float32)
        largest = larger
    if SPLITS > 1:
        where = ((tile * tl.num_programs(1) + head) * SPLITS + part) * ROWS + row
        tl.store(largest_ptr + where, largest)
        tl.store(total_ptr + where, total)
        tl.store(out_ptr + where[:, None] * EP + e[None], sums)
    else:
        if SINKS:
            sink = tl.load(sinks_ptr + head * G + group).to(tl.float32)
            total += tl.exp(sink - tl.where(largest == -float("inf"), 0.0, largest))
        out = sums / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(
            out_ptr + (start + token)[:, None] * out_n + head * out_h + group[:, None] * out_g + e[None],
            out.to(out_ptr.dtype.element_ty), mask=live[:, None] & e_inside[None],
        )  # fmt: skip


@triton.jit
def join_parts(
    parts_ptr, largest_ptr, total_ptr, sinks_ptr, out_ptr, out_n, out_h, out_g, G: tl.constexpr, E: tl.constexpr,
    EP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
    SINKS: tl.constexpr,
):  # fmt: skip
    """Put the parts of a tile's keys together."""
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, e = tl.arange(0, ROWS), tl.arange(0, EP)
    token, group = row // G, row % G
    base = (tile * tl.num_programs(1) + head) * SPLITS * ROWS + row
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    for part in range(SPLITS):
        largest = tl.maximum(largest, tl.load(largest_ptr + base + part * ROWS))
    largest = tl.where(largest == -float("inf"), 0.0, largest)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, EP], tl.float32)
    for part in range(SPLITS):
        where = base + part * ROWS
        shrink = tl.exp(tl.load(largest_ptr + where) - largest)
        total += tl.load(total_ptr + where) * shrink
        sums += tl.load(parts_ptr + where[:, None] * EP + e[None]) * shrink[:, None]
    if SINKS:
        total += tl.exp(tl.load(sinks_ptr + head * G + group).to(tl.float32) - largest)
    out = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    start, count = _place(tile, WIDTH, TOKENS)
    tl.store(
        out_ptr + (start + token)[:, None] * out_n + head * out_h + group[:, None] * out_g + e[None],
        out.to(out_ptr.dtype.element_ty), mask=(token < count)[:, None] & (e < E)[None],
    )  # fmt: skip


@triton.jit
def store_tokens(
    k_ptr, v_ptr, slots_ptr, positions_ptr, keys_ptr, values_ptr, k_n, k_h, v_n, v_h, keys_s, keys_h, keys_l, values_s,
    values_h, values_l, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """Store the key and the value of one token and head in its slot."""
    n, h = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    d, e = tl.arange(0, DP), tl.arange(0, EP)
    slot, position = tl.load(slots_ptr + n), tl.load(positions_ptr + n)
    k = tl.load(k_ptr + n * k_n + h * k_h + d, mask=d < D)
    v = tl.load(v_ptr + n * v_n + h * v_h + e, mask=e < E)
    to_key = keys_ptr + slot * keys_s + h * keys_h + position * keys_l
    to_value = values_ptr + slot * values_s + h * values_h + position * values_l
    tl.store(to_key + d, k.to(keys_ptr.dtype.element_ty), mask=d < D)
    tl.store(to_value + e, v.to(values_ptr.dtype.element_ty), mask=e < E)


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a kernel is cut to a card's shared memory."""

    keys: int
    stages: int


def choose_blocks(rows: int, key_size: int, value_size: int, itemsize: int, shared_memory: int) -> Blocks:
    """Return keys a block and stages of loading ahead, the most that fit.

    Args:
        rows: Query rows of a tile.
        key_size: D, rounded up to a power of 2.
        value_size: The same of values.
        itemsize: Bytes of a number.
        shared_memory: Bytes a block may have.
    """
    queries = rows * key_size * itemsize
    for keys, stages in ((64, 3), (64, 2), (32, 3), (32, 2), (16, 2), (16, 1)):
        # A weight of every row and key goes through shared memory between the two products.
        taken = queries + stages * keys * (key_size + value_size) * itemsize + rows * keys * 4
        if taken <= shared_memory:
            return Blocks(keys, stages)
    return Blocks(16, 1)


def choose_splits(num_tiles: int, num_heads: int, length: int, num_processors: int) -> int:
    """Return into how many parts the keys of a tile are split, so that every processor has work."""
    parts = 2 * num_processors // max(1, num_tiles * num_heads)
    parts = min(parts, length // _LEAST_SPLIT_KEYS, _MOST_SPLITS)
    return 1 << max(0, parts.bit_length() - 1)


class TritonKernels:
    """The engine's attention and stores on a GPU, of one cache.

    Args:
        length: L.
        device: Where the cache lives.
    """

    name: KernelName = "triton"
    key_block = 0
    seconds = 0.0

    def __init__(self, length: int, device: torch.device) -> None:
        self.length = length
        self.shared_memory, self.num_processors = _SHARED_MEMORY, 1
        if device.type == "cuda":
            card = torch.cuda.get_device_properties(device)
            self.shared_memory = getattr(card, "shared_memory_per_block_optin", _SHARED_MEMORY)
            self.num_processors = card.multi_processor_count
        self._packing: Packing | None = None
        self._tiles: dict[int, torch.Tensor] = {}  # tokens a tile -> [W, 4]

    def begin(self, packing: Packing) -> None:
        """Take the packing of the next forward."""
        self._packing = packing
        self._tiles.clear()

    def store(
        self, k_NHD: torch.Tensor, v_NHE: torch.Tensor, keys_SHLD: torch.Tensor, values_SHLE: torch.Tensor
    ) -> None:
        """Store new keys and values where the packing says."""
        packing = self._packing
        assert packing is not None
        (num_tokens, num_heads, size), value_size = k_NHD.shape, v_NHE.shape[-1]
        k_NHD, v_NHE = _rows(k_NHD), _rows(v_NHE)
        store_tokens[(num_tokens, num_heads)](
            k_NHD, v_NHE, packing.slots_N, packing.positions_N, keys_SHLD, values_SHLE, *k_NHD.stride()[:2],
            *v_NHE.stride()[:2], *keys_SHLD.stride()[:3], *values_SHLE.stride()[:3], D=size, DP=_power(size),
            E=value_size, EP=_power(value_size), num_warps=1,
        )  # fmt: skip

    def attend(
        self, q_NHGD: torch.Tensor, keys_SHLD: torch.Tensor, values_SHLE: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Attend every packed token: -> [N, H, G, E]."""
        packing = self._packing
        assert packing is not None
        num_tokens, num_heads, group, size = q_NHGD.shape
        value_size = values_SHLE.shape[-1]
        q_NHGD = _rows(q_NHGD)
        width = num_tokens // packing.rows if packing.rows else 0
        if width:
            tokens = max(1, min(width, _MOST_ROWS // group))
            rows = max(_LEAST_ROWS, _power(tokens * group))
            tiles_W4, num_tiles = packing.slots_N, packing.rows * -(-width // tokens)  # not read
            splits = choose_splits(num_tiles, num_heads, self.length, self.num_processors)
        else:
            rows, splits = max(_MOST_ROWS, _power(group)), 1
            tokens = rows // group
            tiles_W4 = self._tiles_of(tokens)
            num_tiles = len(tiles_W4)
        blocks = choose_blocks(rows, _power(size), _power(value_size), q_NHGD.element_size(), self.shared_memory)
        out = torch.empty((num_tokens, num_heads, group, value_size), dtype=q_NHGD.dtype, device=q_NHGD.device)
        target, facts = out, [out, out]
        if splits > 1:
            shape = (num_tiles, num_heads, splits, rows)
            target = torch.empty((*shape, _power(value_size)), dtype=torch.float32, device=out.device)
            facts = [torch.empty(shape, dtype=torch.float32, device=out.device) for _ in range(2)]
        sinks = out if scoring.sinks is None else scoring.sinks
        common: dict[str, Any] = {
            "G": group, "E": value_size, "EP": _power(value_size), "ROWS": rows, "WIDTH": width, "TOKENS": tokens,
            "SPLITS": splits, "SINKS": scoring.sinks is not None,
        }  # fmt: skip
        attend_tiles[(num_tiles, num_heads, splits)](
            q_NHGD, keys_SHLD, values_SHLE, tiles_W4, packing.slots_N, packing.positions_N, sinks, target, *facts,
            scoring.scale, scoring.softcap, scoring.window, *q_NHGD.stride()[:3], *keys_SHLD.stride()[:3],
            *values_SHLE.stride()[:3], *out.stride()[:3], D=size, DP=_power(size), KEYS=blocks.keys,
            SOFTCAP=bool(scoring.softcap), PRECISION="ieee" if q_NHGD.dtype == torch.float32 else "tf32", num_warps=4,
            num_stages=blocks.stages, **common,
        )  # fmt: skip
        if splits > 1:
            join_parts[(num_tiles, num_heads)](target, *facts, sinks, out, *out.stride()[:3], num_warps=4, **common)
        return out

    def _tiles_of(self, num_tokens: int) -> torch.Tensor:
        """Cut the segments of the packing into tiles of so many tokens: int64 (first token, tokens, slot, position)."""
        if num_tokens not in self._tiles:
            assert self._packing is not None
            assert self._packing.segments is not None
            records = tiles(self._packing.segments, num_tokens)
            self._tiles[num_tokens] = torch.tensor(records, dtype=torch.int64).to(self._packing.slots_N.device)
        return self._tiles[num_tokens]


def tiles(segments: tuple[Segment, ...], num_tokens: int) -> list[tuple[int, int, int, int]]:
    """Cut segments into tiles: (first packed token, tokens, slot, first position) each, those with most keys first."""
    found = [
        (s.start + offset, min(num_tokens, s.count - offset), s.slot, s.position + offset)
        for s in segments
        for offset in range(0, s.count, num_tokens)
    ]
    return sorted(found, key=lambda tile: -(tile[3] + tile[1]))


def _power(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return numbers whose last dimension lies in one piece."""
    return x if x.stride(-1) == 1 else x.contiguous()
