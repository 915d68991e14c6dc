"""Attention on a GPU is the plain sum over exactly the keys a query sees, and what is stored is where it belongs."""

from __future__ import annotations

import pytest
import torch

from onpolicy_sdft.rollout.attention import Scoring, TorchKernels
from onpolicy_sdft.rollout.gpu.attention import TritonKernels, choose_splits
from onpolicy_sdft.rollout.slots import Packing, Segment

LENGTH, NUM_SLOTS = 160, 7
SCORINGS = {
    "plain": Scoring(0.25, 0, 0.0, None),
    "window": Scoring(0.25, 7, 0.0, None),
    "wide window": Scoring(0.25, 90, 0.0, None),
    "softcap": Scoring(0.25, 0, 2.0, None),
    "sinks": Scoring(0.25, 0, 0.0, torch.linspace(-1, 2, 12)),
    "all": Scoring(0.25, 33, 1.5, torch.linspace(-1, 2, 12)),
}
RAGGED = [(0, 0, 70), (1, 20, 1), (2, 0, 1), (3, 33, 4), (4, 5, 9), (5, 64, 65)]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ragged(places):
    segments, start = [], 0
    for slot, position, count in places:
        segments.append(Segment(start, count, slot, position))
        start += count
    return Packing.of(segments, torch.device("cpu"))


def grid(places, width):
    slots = torch.tensor([slot for slot, _ in places]).repeat_interleave(width)
    positions = torch.tensor([[first + i for i in range(width)] for _, first in places]).flatten()
    return Packing(slots, positions, None, len(places))


def attended(packing, num_heads, group, size, value_size, how, kernels=None):
    """Attend in both ways over slots that hold nan wherever nothing was stored."""
    keys, values = (
        numbers(NUM_SLOTS, num_heads, LENGTH, size, seed=1),
        numbers(NUM_SLOTS, num_heads, LENGTH, value_size),
    )
    ends = torch.zeros(NUM_SLOTS, dtype=torch.int64)
    ends.scatter_reduce_(0, packing.slots_N, packing.positions_N + 1, "amax")
    for slot, end in enumerate(ends.tolist()):
        keys[slot, :, end:], values[slot, :, end:] = torch.nan, torch.nan
    if how.sinks is not None:
        how = Scoring(how.scale, how.window, how.softcap, how.sinks[: num_heads * group].contiguous())
    q = numbers(len(packing.slots_N), num_heads * group, size, seed=2).transpose(0, 1).contiguous()  # as layers give it
    q = q.unflatten(0, (num_heads, group)).permute(2, 0, 1, 3)
    found = []
    for each in (kernels or TritonKernels(LENGTH, torch.device("cpu")), TorchKernels(LENGTH)):
        each.begin(packing)
        found.append(each.attend(q, keys, values, how))
    return found


@pytest.mark.parametrize("name", SCORINGS)
@pytest.mark.parametrize("kind", ["prompts", "rows", "drafts"])
@pytest.mark.few(6)
def test_it_is_the_plain_sum_whatever_the_scoring(kind, name):
    places = [(0, 0), (3, 50), (1, 7), (6, 120)]
    packing = {"prompts": ragged(RAGGED), "rows": grid(places, 1), "drafts": grid(places, 5)}[kind]
    mine, plain = attended(packing, 2, 3, 16, 16, SCORINGS[name])
    torch.testing.assert_close(mine, plain, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("num_heads", "group"), [(1, 1), (3, 3), (2, 7), (4, 1), (1, 12)])
@pytest.mark.parametrize(("size", "value_size"), [(32, 32), (64, 64), (80, 80), (96, 64), (128, 128), (256, 256)])
@pytest.mark.few(5)
def test_it_is_the_plain_sum_whatever_the_heads(size, value_size, num_heads, group):
    for packing in (ragged(RAGGED[1:5]), grid([(0, 0), (3, 50), (6, 158)], 2)):
        how = Scoring(size**-0.5, 0, 0.0, None)
        mine, plain = attended(packing, num_heads, group, size, value_size, how)
        torch.testing.assert_close(mine, plain, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SCORINGS)
@pytest.mark.few(2)
def test_drafts_of_many_queries_take_several_tiles(name, monkeypatch):
    monkeypatch.setattr("onpolicy_sdft.rollout.gpu.attention._LEAST_SPLIT_KEYS", 16)
    kernels = TritonKernels(LENGTH, torch.device("cpu"))
    for kernels.num_processors in (1, 132):
        mine, plain = attended(grid([(0, 0), (3, 50), (6, 149)], 11), 1, 12, 16, 16, SCORINGS[name], kernels)
        torch.testing.assert_close(mine, plain, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SCORINGS)
@pytest.mark.few(3)
def test_keys_that_are_split_give_the_same(name, monkeypatch):
    monkeypatch.setattr("onpolicy_sdft.rollout.gpu.attention._LEAST_SPLIT_KEYS", 16)
    kernels = TritonKernels(LENGTH, torch.device("cpu"))
    kernels.num_processors = 132
    assert choose_splits(3, 2, LENGTH, 132) == 8
    mine, plain = attended(grid([(0, 0), (3, 50), (6, 158)], 2), 2, 3, 16, 16, SCORINGS[name], kernels)
    torch.testing.assert_close(mine, plain, atol=2e-6, rtol=1e-5)


def test_padding_rows_give_numbers_and_disturb_nobody():
    places = [(0, 12), (3, 50)]
    alone, _ = attended(grid(places, 2), 2, 3, 16, 16, SCORINGS["plain"])
    padded, _ = attended(grid([*places, (5, 0), (5, 0)], 2), 2, 3, 16, 16, SCORINGS["plain"])
    assert torch.equal(padded[:4], alone)
    assert padded.isfinite().all()


@pytest.mark.parametrize(("size", "value_size"), [(16, 16), (80, 48)])
def test_what_is_stored_is_what_torch_stores(size, value_size):
    packing = ragged(RAGGED)
    num_tokens = len(packing.slots_N)
    k = numbers(3, num_tokens, size).transpose(0, 1)
    v = numbers(num_tokens, 3, value_size, seed=1)
    buffers = []
    for each in (TritonKernels(LENGTH, torch.device("cpu")), TorchKernels(LENGTH)):
        pair = torch.zeros(NUM_SLOTS, 3, LENGTH, size), torch.zeros(NUM_SLOTS, 3, LENGTH, value_size)
        each.begin(packing)
        each.store(k, v, *pair)
        buffers.append(pair)
    for mine, plain in zip(*buffers, strict=True):
        assert torch.equal(mine, plain)
