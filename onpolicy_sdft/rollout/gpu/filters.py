"""Top-k, top-p and min-p without a sort: the floor of each row, the logit of the least likely token it keeps.

Top-k and top-p keep a token if what stands above it weighs less than a target: each token above weighs one and the
target is k, or each weighs its probability and the target is p. So the floor is the smallest logit of the row with
``weight(logits above it) < target``. It lies between two logits of the row. Every pass weighs what is above three
values between and moves both ends to logits of the row, until they meet: exact, however close logits are, in three to
ten passes where logits are spread as a model's are. (A radix select over the bits would need a histogram of
probabilities, and so atomic additions, whose sums depend on their order. Sums have a fixed order here.)

Logits are compared before the temperature, which keeps their order. One program a row: few distributions filter, rows
that leave nothing out end at once, and a row stays in the card's second cache between passes.

Shape letters: B rows (slots), N rows of logits, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from onpolicy_sdft.rollout.gpu.logits import LOWEST, finish

if TYPE_CHECKING:
    from onpolicy_sdft.rollout.decode import Rows
    from onpolicy_sdft.rollout.sampling import BatchSamplingParams

_IDS = 4096  # logits a step of a pass


@triton.jit
def _logits(row, start, vocab, scale, softcap, IDS: tl.constexpr):
    """Load finished logits, -inf behind the vocabulary."""
    ids = start + tl.arange(0, IDS)
    inside = ids < vocab
    return tl.where(inside, finish(tl.load(row + ids, mask=inside, other=0.0), scale, softcap), -float("inf"))


@triton.jit
def _ends(row, vocab, scale, softcap, IDS: tl.constexpr):
    """Return the smallest and the largest logit of a row."""
    low, high = tl.full([IDS], float("inf"), tl.float32), tl.full([IDS], -float("inf"), tl.float32)
    for start in range(0, vocab, IDS):
        x = _logits(row, start, vocab, scale, softcap, IDS)
        high = tl.maximum(high, x)
        low = tl.minimum(low, tl.where(x == -float("inf"), float("inf"), x))
    return tl.min(low, 0), tl.minimum(tl.max(high, 0), -LOWEST)


@triton.jit
def _weigh(row, vocab, scale, softcap, above, high, temperature, IDS: tl.constexpr):
    """Count the logits above a value, and sum their probabilities relative to the largest."""
    count, mass = tl.zeros([IDS], tl.float32), tl.zeros([IDS], tl.float32)
    for start in range(0, vocab, IDS):
        x = _logits(row, start, vocab, scale, softcap, IDS)
        count += tl.where(x > above, 1.0, 0.0)
        mass += tl.where(x > above, tl.exp((x - high) / temperature), 0.0)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _between(low, high, part):
    """Return a value from ``low`` on and below ``high``."""
    value = low * (1.0 - part) + high * part  # a difference might overflow
    return tl.where((value >= low) & (value < high), value, low)


@triton.jit
def _add(value, x, each, weight, at_most, above):
    """Add logits to what is above a value, and to the largest logit up to it and the smallest above it."""
    is_above = x > value
    weight += tl.where(is_above, each, 0.0)
    at_most = tl.maximum(at_most, tl.where(is_above, -float("inf"), x))
    return weight, at_most, tl.minimum(above, tl.where(is_above, x, float("inf")))


@triton.jit
def _narrow(low, high, target, weight, at_most, above):
    """Move one end: the floor is at most a value that is kept, and above one that is not."""
    is_kept = tl.sum(weight, 0) < target
    low = tl.where(is_kept, low, tl.maximum(low, tl.min(above, 0)))
    return low, tl.where(is_kept, tl.minimum(high, tl.max(at_most, 0)), high)


@triton.jit
def _smallest_kept(row, vocab, scale, softcap, low, high, target, temperature, IDS: tl.constexpr, COUNT: tl.constexpr):
    """Return the smallest logit that has less than ``target`` above it; ``low`` and ``high`` are logits of the row.

    ``COUNT``: each logit weighs one; otherwise its probability relative to that of ``high``.
    """
    largest = high
    while low < high:
        value_1, value_2, value_3 = _between(low, high, 0.25), _between(low, high, 0.5), _between(low, high, 0.75)
        weight_1 = tl.zeros([IDS], tl.float32)
        most_1 = tl.full([IDS], -float("inf"), tl.float32)
        above_1 = tl.full([IDS], float("inf"), tl.float32)
        weight_2, most_2, above_2 = weight_1, most_1, above_1
        weight_3, most_3, above_3 = weight_1, most_1, above_1
        for start in range(0, vocab, IDS):
            x = _logits(row, start, vocab, scale, softcap, IDS)
            each = 1.0 if COUNT else tl.exp((x - largest) / temperature)
            weight_1, most_1, above_1 = _add(value_1, x, each, weight_1, most_1, above_1)
            weight_2, most_2, above_2 = _add(value_2, x, each, weight_2, most_2, above_2)
            weight_3, most_3, above_3 = _add(value_3, x, each, weight_3, most_3, above_3)
        low, high = _narrow(low, high, target, weight_1, most_1, above_1)
        low, high = _narrow(low, high, target, weight_2, most_2, above_2)
        low, high = _narrow(low, high, target, weight_3, most_3, above_3)
    return high


@triton.jit(do_not_specialize=["width", "padding_slot"])
def floors(
    x_ptr, x_stride, slots_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr,
    greedy_ptr, floors_ptr, padding_slot, vocab, width, scale, softcap, IDS: tl.constexpr,
):  # fmt: skip
    """Find the floor of a row of logits: grid [N]; -inf where everything is kept."""
    n = tl.program_id(0)
    slot = tl.load(slots_ptr + n // width)
    row = x_ptr + n.to(tl.int64) * x_stride
    temperature = tl.load(temperature_ptr + slot)
    top_k = tl.load(top_k_ptr + slot).to(tl.float32)
    top_p, min_p = tl.load(top_p_ptr + slot), tl.load(min_p_ptr + slot)
    has_top_k = top_k < vocab
    floor = -float("inf")
    leaves_out = has_top_k | (top_p < 1.0) | (min_p > 0.0)
    # The likeliest token is always kept, and nobody reads what the padding slot draws.
    if leaves_out & (tl.load(greedy_ptr + slot) == 0) & (slot != padding_slot):
        low, high = _ends(row, vocab, scale, softcap, IDS)
        if has_top_k:
            low = _smallest_kept(row, vocab, scale, softcap, low, high, top_k, temperature, IDS, True)
            floor = low
        if top_p < 1.0:
            # Relative to what top-k left: all above its floor, and of those that equal it as many as k allows.
            count, total = _weigh(row, vocab, scale, softcap, floor, high, temperature, IDS)
            if has_top_k:
                total += (top_k - count) * tl.exp((low - high) / temperature)
            floor = _smallest_kept(row, vocab, scale, softcap, low, high, top_p * total, temperature, IDS, False)
        if min_p > 0.0:
            floor = tl.maximum(floor, high + temperature * tl.log(min_p))
    tl.store(floors_ptr + n, floor)


def find_floors(
    batch_params: BatchSamplingParams,
    rows: Rows,
    raw_NV: torch.Tensor,
    scale: float | None,
    softcap: float | None,
    changed_NV: torch.Tensor | None,
) -> torch.Tensor:
    """Return the logit of the least likely token each row keeps, before the temperature: [N] float32."""
    x_NV = raw_NV
    if changed_NV is not None:
        x_NV, scale, softcap = changed_NV, None, None  # finished
    floors_N = torch.empty(len(x_NV), device=x_NV.device)
    num_tokens = min(batch_params.vocabulary.num_tokens, x_NV.shape[1])
    floors[(len(x_NV),)](
        x_NV, x_NV.stride(0), rows.slots_B, batch_params.temperature_B, batch_params.top_k_B, batch_params.top_p_B,
        batch_params.min_p_B,
        batch_params.greedy_B, floors_N, len(batch_params.greedy_B) - 1, num_tokens,
        rows.width, scale,
        softcap, IDS=_IDS, num_warps=16,
    )  # fmt: skip
    return floors_N
