"""The CPU kernel, the torch operations and a plain float64 sum over exactly the keys a query sees agree."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from onpolicy_sdft.rollout.attention import Scoring, TorchKernels
from onpolicy_sdft.rollout.cpu.attention import KEY_BLOCK, slot_attention, tile_tokens, tiles, use_threads_of_torch
from onpolicy_sdft.rollout.slots import Packing, Segment

NUM_HEADS, GROUP, SIZE = 2, 3, 16
SINKS = torch.linspace(-1, 2, NUM_HEADS * GROUP)
SCORINGS = {
    "plain": Scoring(0.25, 0, 0.0, None),
    "window": Scoring(0.25, 7, 0.0, None),
    "softcap": Scoring(0.25, 0, 2.0, None),
    "sinks": Scoring(0.25, 5, 1.5, SINKS),
}
RAGGED = [(0, 0, 70), (1, 20, 1), (2, 0, 1), (3, 33, 4), (4, 5, 9), (5, 64, 65)]


@pytest.fixture(autouse=True)
def _two_threads():
    """Tests run in processes of one thread each; here the kernel's threads share the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    use_threads_of_torch()
    yield
    torch.set_num_threads(before)
    use_threads_of_torch()


def pack(places):
    segments, start = [], 0
    for slot, position, count in places:
        segments.append(Segment(start, count, slot, position))
        start += count
    slots = torch.tensor([s.slot for s in segments for _ in range(s.count)])
    positions = torch.tensor([p for s in segments for p in range(s.position, s.position + s.count)])
    return Packing(slots, positions, tuple(segments), 0)


def inputs(num_tokens, dtype, value_size=SIZE, num_slots=8, length=160):
    generator = torch.Generator().manual_seed(num_tokens)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    keys, values = random(num_slots, NUM_HEADS, length, SIZE), random(num_slots, NUM_HEADS, length, value_size)
    return random(num_tokens, NUM_HEADS, GROUP, SIZE), keys, values


def poison(keys, values, packing):
    """Make everything beyond each slot's length nan."""
    ends = dict.fromkeys(range(len(keys)), 0) | {s.slot: s.position + s.count for s in packing.segments}
    for slot, end in ends.items():
        keys[slot, :, end:] = torch.nan
        values[slot, :, end:] = torch.nan


def in_blocks(keys):
    """Lay keys [S, H, L, D] out as the kernel reads them."""
    padded = torch.nn.functional.pad(keys, (0, 0, 0, -keys.shape[2] % KEY_BLOCK), value=torch.nan)
    return padded.unflatten(2, (-1, KEY_BLOCK)).transpose(-1, -2).contiguous()


def plain(q, keys, values, packing, how):
    """Softmax over the visible keys, one query at a time, in float64."""
    out = torch.zeros(*q.shape[:3], values.shape[-1], dtype=torch.float64)
    for n, (slot, position) in enumerate(zip(packing.slots_N.tolist(), packing.positions_N.tolist(), strict=True)):
        first = max(0, position + 1 - how.window) if how.window else 0
        for h in range(NUM_HEADS):
            k, v = keys[slot, h, first : position + 1].double(), values[slot, h, first : position + 1].double()
            scores = q[n, h].double() @ k.T * how.scale
            scores = how.softcap * torch.tanh(scores / how.softcap) if how.softcap else scores
            if how.sinks is not None:
                scores = torch.cat([scores, how.sinks.reshape(NUM_HEADS, GROUP)[h].double()[:, None]], -1)
            out[n, h] = torch.softmax(scores, -1)[:, : len(k)] @ v
    return out


@pytest.mark.parametrize("name", SCORINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("value_size", [SIZE, 12])
@pytest.mark.few(3)
def test_the_kernel_is_the_plain_sum_and_never_reads_beyond_a_length(name, dtype, value_size):
    packing, how = pack(RAGGED), SCORINGS[name]
    q, keys, values = inputs(len(packing.slots_N), dtype, value_size)
    poison(keys, values, packing)
    found = slot_attention(
        q, in_blocks(keys), values, tiles(packing.segments, GROUP),
        scale=how.scale, window=how.window, softcap=how.softcap,
        sinks_HG=None if how.sinks is None else how.sinks.reshape(NUM_HEADS, GROUP),
    )  # fmt: skip
    torch.testing.assert_close(found.double(), plain(q, keys, values, packing, how), atol=3e-6, rtol=1e-5)


def in_torch(q, keys, values, packing, how):
    kernels = TorchKernels(keys.shape[2])
    kernels.begin(packing)
    return kernels.attend(q, keys, values, how)


@pytest.mark.parametrize("name", SCORINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_segments_in_torch_operations_are_the_plain_sum(name, dtype):
    packing, how = pack(RAGGED), SCORINGS[name]
    q, keys, values = inputs(len(packing.slots_N), dtype)
    poison(keys, values, packing)
    found = in_torch(q, keys, values, packing, how)
    torch.testing.assert_close(found.double(), plain(q, keys, values, packing, how), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SCORINGS)
@pytest.mark.parametrize("width", [1, 4])
def test_a_grid_in_torch_operations_is_the_plain_sum(name, width):
    how = SCORINGS[name]
    ragged = pack([(slot, position, width) for slot, position in ((0, 0), (3, 50), (1, 7), (6, 12))])
    q, keys, values = inputs(len(ragged.slots_N), torch.float64)
    poison(keys, values, ragged)
    grid = Packing(ragged.slots_N, ragged.positions_N, None, 4)
    found = in_torch(q, keys, values, grid, how)
    torch.testing.assert_close(found, plain(q, keys, values, ragged, how), atol=1e-9, rtol=1e-9)


def test_tiles_cover_every_token_once_and_get_shorter_for_long_texts():
    packing = pack(RAGGED)
    covered = [n for start, count, _, _ in tiles(packing.segments, GROUP).tolist() for n in range(start, start + count)]
    assert sorted(covered) == list(range(len(packing.slots_N)))
    assert tile_tokens(100, 3) > tile_tokens(10_000, 3) >= tile_tokens(10_000_000, 3) == 1


def test_the_kernels_threads_leave_torch_as_many_as_it_was_given():
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from onpolicy_sdft.rollout.cpu import attention as kernel\n"
        "kernel.use_threads_of_torch()\n"
        "print(torch.get_num_threads(), kernel.numba.get_num_threads())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "NUMBA_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.stdout.split() == ["1", "1"]
