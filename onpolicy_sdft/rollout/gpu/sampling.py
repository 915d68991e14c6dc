"""The draw of a token in one pass over the logits and a small second one: the draw of ``rollout/sampling.py``.

The first kernel reads each logit once, in the type the output layer gave it. Programs share a row: each keeps, for its
blocks of 64 ids, the total and entropy of the model's own distribution, the total of the distribution to draw from,
and the block whose log-probability plus noise is largest (that needs no total, so one pass is enough). The second puts
the shares of a row together and draws a token of the block. Where a row is not shared, the first does that as well.

Shape letters: B rows (slots), Q tokens a row, N = B * Q rows of logits, V vocabulary, S slots, P programs that share a
row of logits; in kernels m is a maximum, s a sum of exp(logit - m), t a sum of exp(logit - m) * (logit - m).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from onpolicy_sdft.rollout import sampling
from onpolicy_sdft.rollout.gpu.filters import find_floors
from onpolicy_sdft.rollout.gpu.logits import BIG, LOWEST, finish
from onpolicy_sdft.rollout.gpu.noise import gumbel, noise_key

if TYPE_CHECKING:
    from onpolicy_sdft.models.policy import Head
    from onpolicy_sdft.rollout.decode import Rows
    from onpolicy_sdft.rollout.sampling import BatchSamplingParams
    from onpolicy_sdft.rollout.slots import SlotTexts

_BLOCK = tl.constexpr(sampling.BLOCK)
_BLOCK_IDS = tl.constexpr(sampling.BLOCK_IDS)
_BLOCKS = 32  # of a tile: 2,048 logits, 16 a thread
_PROGRAMS = 1024  # about eight for each multiprocessor of a large card


@triton.jit
def _merge(m, s, t, m_new, s_new, t_new):
    """Add sums around one maximum to sums around another."""
    both = tl.maximum(m, m_new)
    a, b = tl.exp(m - both), tl.exp(m_new - both)
    # Where a share is nothing its distance may be infinite.
    t = tl.where(a > 0.0, a * (t + s * (m - both)), 0.0) + tl.where(b > 0.0, b * (t_new + s_new * (m_new - both)), 0.0)
    return both, a * s + b * s_new, t


@triton.jit
def _gather(m, s, t):
    """Put a vector of sums, each around its own maximum, together."""
    whole = tl.max(m, 0)
    a = tl.exp(m - whole)
    return whole, tl.sum(a * s, 0), tl.sum(tl.where(a > 0.0, a * (t + s * (m - whole)), 0.0), 0)


@triton.jit
def _best(value, pick):
    """Return the largest value and its pick; the lowest pick of equals, as torch's argmax."""
    largest = tl.max(value, 0)
    return largest, tl.min(tl.where(value == largest, pick, BIG), 0)


@triton.jit
def _sums(x):
    """Return maximum, sum and weighted sum of each block: x [blocks, ids], -inf where there is no id."""
    m = tl.maximum(tl.max(x, 1), LOWEST)  # finite: a difference of infinities is not a number
    e = tl.exp(x - m[:, None])
    return m, tl.sum(e, 1), tl.sum(tl.where(e > 0.0, e * (x - m[:, None]), 0.0), 1)


@triton.jit
def _choose(
    n, raw_row, changed_row, floors_ptr, num_tokens, scale, softcap, temperature,
    greedy, first, second, pick, m, s, t, sampling_m, sampling_s, tokens_ptr,
    logprobs_ptr, sampling_ptr, entropies_ptr, RAW: tl.constexpr,
):  # fmt: skip
    """Take a token of the block that was picked, and write what is recorded of it."""
    ids = tl.minimum(pick, (num_tokens - 1) // _BLOCK) * _BLOCK + tl.arange(0, _BLOCK)
    inside = ids < num_tokens
    own = finish(tl.load(raw_row + ids, mask=inside, other=0.0), scale, softcap)
    x = own
    if changed_row is not None:
        x = finish(tl.load(changed_row + ids, mask=inside, other=0.0), None, None)
    if floors_ptr is not None:
        inside = inside & (x >= tl.load(floors_ptr + n))
    x = x if RAW else x / temperature
    noisy = x + tl.where(greedy, 0.0, gumbel(first, second, ids))
    _, token = _best(tl.where(inside, noisy, -float("inf")), ids)
    token = tl.minimum(token, num_tokens - 1)  # where logits are not numbers
    chosen = ids == token
    logprob = tl.sum(tl.where(chosen, own, 0.0), 0) - m - tl.log(s)
    params_logprob = logprob if RAW else tl.sum(tl.where(chosen, x, 0.0), 0) - sampling_m - tl.log(sampling_s)
    tl.store(tokens_ptr + n, token.to(tl.int64))
    tl.store(logprobs_ptr + n, logprob)
    tl.store(sampling_ptr + n, tl.where(greedy, 0.0, params_logprob))
    entropy = tl.log(s) - t / s
    tl.store(entropies_ptr + n, tl.where(entropy < 0.0, 0.0, entropy))


@triton.jit
def _row(
    n, width, slots_ptr, lengths_ptr, starts_ptr, words_ptr, temperature_ptr,
    greedy_ptr,
):  # fmt: skip
    """Load what a row of logits is drawn with: temperature, whether it is greedy, and its two words of noise."""
    slot = tl.load(slots_ptr + n // width)
    place = tl.load(lengths_ptr + slot) + n % width + 1 - tl.load(starts_ptr + slot)
    first, second = noise_key(words_ptr, slot, place)
    return tl.load(temperature_ptr + slot), tl.load(greedy_ptr + slot) != 0, first, second


@triton.jit(do_not_specialize=["width", "num_tiles"])  # or every bucket of rows would be compiled
def survey(
    raw_ptr, raw_stride, changed_ptr, changed_stride, floors_ptr, slots_ptr, lengths_ptr,
    starts_ptr, words_ptr, temperature_ptr, greedy_ptr, sums_ptr, picks_ptr,
    tokens_ptr, logprobs_ptr, sampling_ptr, entropies_ptr, vocab, num_tokens, width, scale,
    softcap, num_tiles, ALONE: tl.constexpr, BLOCKS: tl.constexpr, RAW: tl.constexpr,
):  # fmt: skip
    """Read a share of a row of logits: grid [N, P]."""
    n, share = tl.program_id(0), tl.program_id(1)
    temperature, greedy, first, second = _row(
        n, width, slots_ptr, lengths_ptr, starts_ptr, words_ptr, temperature_ptr, greedy_ptr
    )
    raw_row = raw_ptr + n.to(tl.int64) * raw_stride
    changed_row = changed_ptr if changed_ptr is None else changed_ptr + n.to(tl.int64) * changed_stride
    m, s, t = tl.full([BLOCKS], LOWEST, tl.float32), tl.zeros([BLOCKS], tl.float32), tl.zeros([BLOCKS], tl.float32)
    sampling_m, sampling_s, sampling_t = m, s, t
    best, pick = tl.full([BLOCKS], -float("inf"), tl.float32), tl.full([BLOCKS], BIG, tl.int32)
    for tile in range(share * num_tiles, (share + 1) * num_tiles):
        blocks = tile * BLOCKS + tl.arange(0, BLOCKS)
        ids = blocks[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None]
        inside = ids < vocab
        own = finish(tl.load(raw_row + ids, mask=inside, other=0.0), scale, softcap)
        own = tl.where(inside, own, -float("inf"))
        block_m, block_s, block_t = _sums(own)
        m, s, t = _merge(m, s, t, block_m, block_s, block_t)
        x = own
        if not RAW:
            inside = inside & (ids < num_tokens)
            if changed_row is not None:
                x = finish(tl.load(changed_row + ids, mask=inside, other=0.0), None, None)
            if floors_ptr is not None:
                inside = inside & (x >= tl.load(floors_ptr + n))
            x = tl.where(inside, x / temperature, -float("inf"))
            block_m, block_s, block_t = _sums(x)
            sampling_m, sampling_s, sampling_t = _merge(sampling_m, sampling_s, sampling_t, block_m, block_s, block_t)
        value = tl.where(block_s > 0.0, block_m, -float("inf"))  # the likeliest token is in the block that has it
        if greedy == 0:
            value = block_m + tl.log(block_s) + gumbel(first, second, blocks + _BLOCK_IDS)
        pick = tl.where(value > best, blocks, pick)
        best = tl.where(value > best, value, best)
    m, s, t = _gather(m, s, t)
    if RAW:
        sampling_m, sampling_s = m, s
    else:
        sampling_m, sampling_s, sampling_t = _gather(sampling_m, sampling_s, sampling_t)
    best, pick = _best(best, pick)
    if ALONE:
        _choose(
            n, raw_row, changed_row, floors_ptr, num_tokens, scale, softcap, temperature, greedy, first, second, pick,
            m, s, t, sampling_m, sampling_s, tokens_ptr, logprobs_ptr, sampling_ptr, entropies_ptr, RAW,
        )  # fmt: skip
    else:
        where = n * tl.num_programs(1) + share
        tl.store(picks_ptr + where, pick)
        sums_row = sums_ptr + where * 6
        tl.store(sums_row, m)
        tl.store(sums_row + 1, s)
        tl.store(sums_row + 2, t)
        tl.store(sums_row + 3, sampling_m)
        tl.store(sums_row + 4, sampling_s)
        tl.store(sums_row + 5, best)


@triton.jit(do_not_specialize=["width", "num_shares"])
def conclude(
    raw_ptr, raw_stride, changed_ptr, changed_stride, floors_ptr, slots_ptr, lengths_ptr,
    starts_ptr, words_ptr, temperature_ptr, greedy_ptr, sums_ptr, picks_ptr,
    tokens_ptr, logprobs_ptr, sampling_ptr, entropies_ptr, vocab, num_tokens, width, scale,
    softcap, num_shares, SHARES: tl.constexpr, RAW: tl.constexpr,
):  # fmt: skip
    """Put the shares of a row of logits together and draw its token: grid [N]."""
    n = tl.program_id(0)
    temperature, greedy, first, second = _row(
        n, width, slots_ptr, lengths_ptr, starts_ptr, words_ptr, temperature_ptr, greedy_ptr
    )
    shares = tl.arange(0, SHARES)
    there = shares < num_shares
    where = n * num_shares + shares
    sums_row = sums_ptr + where * 6
    m, s, t = _gather(
        tl.load(sums_row, mask=there, other=LOWEST),
        tl.load(sums_row + 1, mask=there, other=0.0),
        tl.load(sums_row + 2, mask=there, other=0.0),
    )
    sampling_m, sampling_s = m, s
    if not RAW:
        sampling_m = tl.load(sums_row + 3, mask=there, other=LOWEST)
        sampling_s = tl.load(sums_row + 4, mask=there, other=0.0)
        sampling_m, sampling_s, _ = _gather(sampling_m, sampling_s, tl.zeros([SHARES], tl.float32))
    best = tl.load(sums_row + 5, mask=there, other=-float("inf"))
    _, pick = _best(best, tl.load(picks_ptr + where, mask=there, other=BIG))
    raw_row = raw_ptr + n.to(tl.int64) * raw_stride
    changed_row = changed_ptr if changed_ptr is None else changed_ptr + n.to(tl.int64) * changed_stride
    _choose(
        n, raw_row, changed_row, floors_ptr, num_tokens, scale, softcap, temperature, greedy, first, second, pick, m, s,
        t, sampling_m, sampling_s, tokens_ptr, logprobs_ptr, sampling_ptr, entropies_ptr, RAW,
    )  # fmt: skip


def draw_rows(
    texts: SlotTexts,
    batch_params: BatchSamplingParams,
    rows: Rows,
    raw_NV: torch.Tensor,
    head: Head,
    changed_NV: torch.Tensor | None,
) -> sampling.Draw:
    """Draw the next token of every row of a [B, Q] grid; nothing is read on the host.

    Args:
        texts: Of the slots: lengths, starts and noise key words.
        batch_params: A row each slot.
        rows: A full grid: N = B * Q.
        raw_NV: What the output layer gave, bfloat16, float16 or float32; rows may be apart, ids may not.
        head: Scale and soft cap of the logits.
        changed_NV: Finished float32 logits of the distribution to draw from, where they are not the model's own ones.
    """
    num_rows, vocab = raw_NV.shape
    num_tokens = min(batch_params.vocabulary.num_tokens, vocab)
    is_raw = batch_params.is_raw and num_tokens == vocab
    assert num_rows == len(rows.slots_B) * rows.width, "rows of logits are not a [B, Q] grid"
    assert raw_NV.dtype != torch.float64, "kernels draw in float32"
    assert raw_NV.stride(1) == 1
    scale = None if head.scale == 1.0 else head.scale
    floors_N = None
    if batch_params.is_filtered:
        floors_N = find_floors(batch_params, rows, raw_NV, scale, head.softcap, changed_NV)
    num_shares, num_tiles = shares_of(num_rows, vocab)
    device = raw_NV.device
    sums_NP6 = torch.empty(num_rows, num_shares, 6, device=device)
    picks_NP = torch.empty(num_rows, num_shares, dtype=torch.int32, device=device)
    token_ids_N = torch.empty(num_rows, dtype=torch.int64, device=device)
    logprobs_N, sampling_N, entropies_N = (torch.empty(num_rows, device=device) for _ in range(3))
    arguments = (
        raw_NV, raw_NV.stride(0), changed_NV, None if changed_NV is None else changed_NV.stride(0), floors_N,
        rows.slots_B, texts.lengths, texts.starts, texts.words, batch_params.temperature_B, batch_params.greedy_B,
        sums_NP6, picks_NP,
        token_ids_N, logprobs_N, sampling_N, entropies_N, vocab, num_tokens, rows.width, scale, head.softcap,
    )  # fmt: skip
    survey[(num_rows, num_shares)](
        *arguments, num_tiles, ALONE=num_shares == 1, BLOCKS=_BLOCKS, RAW=is_raw, num_warps=4
    )
    if num_shares > 1:
        most_shares = triton.next_power_of_2(shares_of(1, vocab)[0])
        conclude[(num_rows,)](*arguments, num_shares, SHARES=most_shares, RAW=is_raw, num_warps=2)
    return sampling.Draw(token_ids_N, logprobs_N, sampling_N, entropies_N)


def shares_of(num_rows: int, vocab: int) -> tuple[int, int]:
    """Return how many programs share a row of logits and how many tiles each of them reads.

    Few rows are shared by as many as fill a card; many rows by few, as each program costs a start and an end.
    """
    num_tiles = triton.cdiv(vocab, _BLOCKS * sampling.BLOCK)
    a_program = triton.cdiv(num_tiles, max(1, _PROGRAMS // num_rows))
    return triton.cdiv(num_tiles, a_program), a_program
