"""The engine writes the right tokens: attention, texts of every way of working, log-probabilities, LoRA, rounding.

Shape letters: S slots, H key-value heads, L positions, D head size, N packed tokens, G query heads a key-value head.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.engines import make_engine
from benchmarks.gpu.models import generate, lengths, make_model, requests
from onpolicy_sdft.rollout.attention import KernelName, Scoring
from onpolicy_sdft.rollout.kernels import make_kernels
from onpolicy_sdft.rollout.slots import Packing, Segment
from onpolicy_sdft.types import Rollout, RolloutRequest, SamplingParams

TEXTS, ATTENTION = "texts in float32 against those with graphs", "attention against a float64 sum"
BFLOAT16, LORA = "texts in bfloat16 against those with graphs", "LoRA, greedy, in float32"
PARAMS = {
    "greedy": SamplingParams(temperature=0.0),
    "T = 1": SamplingParams(),
    "top-k 50, T = 0.7": SamplingParams(temperature=0.7, top_k=50),
    "top-p 0.9": SamplingParams(top_p=0.9),
}
#: Ways of working that must not change a token; the texts they are compared with come from a step with graphs.
VARIANTS: dict[str, dict[str, Any]] = {
    "without graphs": {"graphs": False},
    "with drafts": {"max_draft_tokens": 4},
    "without fused passes": {"fuse": False},
    "ragged, plain sum": {"grid": False, "attention": "torch"},
}
SLOW = ("ragged, plain sum",)  # seconds a distribution
Shape = tuple[int, int, int, int, float]
#: key-value heads, query heads of each, head size, window, soft cap
SHAPES: tuple[Shape, ...] = (
    (3, 3, 64, 0, 0.0),
    (2, 7, 64, 0, 0.0),
    (4, 7, 128, 0, 0.0),
    (2, 4, 128, 37, 0.0),
    (1, 8, 96, 0, 30.0),
)
_LEAST_SECONDS = 8


def run(bench: Bench) -> None:
    """Check texts, what differs in bfloat16, adapters, and last attention by itself, whose kernels compile slowly."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model = make_model(bench, "135M", torch.float32)
    num, longest = bench.pick((12, 40), (4, 8))
    prompts = lengths(num, lambda draw: draw.randint(5, bench.pick(150, 20)))
    limits = lengths(num, lambda draw: draw.randint(longest // 4, longest), seed=1)
    asked = requests(model, prompts, limits, repeat=True)
    for name, params in PARAMS.items():
        bench.attempt(TEXTS, name, partial(_texts, bench, model, asked, name, params), _LEAST_SECONDS)
    bench.attempt(BFLOAT16, "all", partial(_bfloat16, bench, prompts, limits), _LEAST_SECONDS)
    bench.attempt(LORA, "all", partial(_lora, bench, model, asked), _LEAST_SECONDS)  # it wraps the model
    _attention(bench)


def _attention(bench: Bench) -> None:
    """Compare every implementation with a plain sum, with nan in every place that nobody may read."""
    dtypes = bench.pick((torch.float32, torch.bfloat16), (torch.float32,))
    names = [name for name in get_args(KernelName) if name != "cpu"]  # whose layout of keys is its own
    for name in names if not bench.rehearse else ["torch"]:
        for dtype in dtypes:
            for shape in SHAPES:
                heads, group, size, window, cap = shape
                row = f"{name}, {str(dtype)[6:]}, {heads} x {group} heads of {size}, window {window}, soft cap {cap:g}"
                bench.attempt(ATTENTION, row, partial(_errors, bench, row, name, dtype, shape), 3.0)


def _errors(bench: Bench, row: str, name: KernelName, dtype: torch.dtype, shape: Shape) -> None:
    for kind, grid in (("prefill", False), ("decode", True)):
        bench.note(ATTENTION, row, **{kind: _attention_error(bench, name, dtype, shape, grid)})


def _attention_error(bench: Bench, name: KernelName, dtype: torch.dtype, shape: Shape, grid: bool) -> float:
    """Return the relative error of an implementation over ragged segments, or over a grid of drafts."""
    heads, group, size, window, cap = shape
    draw, num_slots, length = random.Random(0), 6, bench.pick(300, 60)
    segments, start = [], 0
    for slot in range(num_slots):
        count = 3 if grid else draw.choice([1, 1, 2, 40])
        segments.append(Segment(start, count, slot, draw.randint(0, length - count)))
        start += count
    packing = Packing.of(segments, bench.device)
    if grid:
        packing = Packing(packing.slots_N, packing.positions_N, None, num_slots)
    generator = torch.Generator(bench.device).manual_seed(0)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, device=bench.device).to(dtype)

    keys_SHLD, values_SHLD = normal(num_slots + 1, heads, length, size), normal(num_slots + 1, heads, length, size)
    for each in segments:
        keys_SHLD[each.slot, :, each.position :] = torch.nan
        values_SHLD[each.slot, :, each.position :] = torch.nan
    q_NHGD, k_NHD, v_NHD = normal(start, heads, group, size), normal(start, heads, size), normal(start, heads, size)
    kernels, scoring = make_kernels(name, length, bench.device), Scoring(size**-0.5, window, cap, None)
    kernels.begin(packing)
    kernels.store(k_NHD, v_NHD, keys_SHLD, values_SHLD)
    found = kernels.attend(q_NHGD, keys_SHLD, values_SHLD, scoring).double()
    expected = _plain(q_NHGD, keys_SHLD, values_SHLD, segments, scoring)
    return float((found - expected).norm() / expected.norm())


def _plain(
    q_NHGD: torch.Tensor, keys_SHLD: torch.Tensor, values_SHLD: torch.Tensor, segments: Sequence[Segment], how: Scoring
) -> torch.Tensor:
    """Attend token by token to exactly the keys it sees, in float64."""
    out = torch.zeros_like(q_NHGD, dtype=torch.float64)
    for each in segments:
        for offset in range(each.count):
            end = each.position + offset + 1
            seen = slice(max(0, end - how.window) if how.window else 0, end)
            k_HLD, v_HLD = keys_SHLD[each.slot, :, seen].double(), values_SHLD[each.slot, :, seen].double()
            scores = torch.einsum("hgd,hld->hgl", q_NHGD[each.start + offset].double(), k_HLD) * how.scale
            scores = how.softcap * torch.tanh(scores / how.softcap) if how.softcap else scores
            out[each.start + offset] = torch.einsum("hgl,hld->hgd", scores.softmax(-1), v_HLD)
    return out


def _texts(bench: Bench, model: Any, asked: Sequence[RolloutRequest], name: str, params: SamplingParams) -> None:
    """Compare the ways of working under one distribution, with each other and with the model's own forward."""
    engine = make_engine(model, 8)
    base = engine.generate(asked, params)
    again = engine.generate(asked, params)
    bench.note(
        TEXTS, f"{name}, again", same=_same(base, again), of=len(asked), logprob_difference=_apart(base, again),
        captured=engine.steps.use_graphs,
    )  # fmt: skip
    for variant, options in VARIANTS.items():
        if variant in SLOW and params not in (PARAMS["greedy"], PARAMS["T = 1"]):
            continue
        row = f"{name}, {variant}"
        bench.attempt(TEXTS, row, partial(_variant, bench, model, asked, params, row, base, options), _LEAST_SECONDS)
    bench.note(TEXTS, f"{name}, the model's own forward", logprob_difference=_own_difference(model, base))
    if params.greedy:
        theirs = generate(bench, model, asked, sample=False)
        same = sum(list(r.token_ids) == text[: len(r.token_ids)] for r, text in zip(base, theirs, strict=True))
        bench.note(TEXTS, f"{name}, generate", same=same, of=len(asked))


def _variant(
    bench: Bench, model: Any, asked: Sequence[RolloutRequest], params: SamplingParams, row: str,
    base: Sequence[Rollout],
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Compare one way of working with the base."""
    engine = make_engine(model, 8, **options)
    texts = engine.generate(asked, params)
    bench.note(
        TEXTS, row, same=_same(base, texts), of=len(asked), logprob_difference=_apart(base, texts),
        drafts_kept=engine.stats.num_accepted_tokens,
    )  # fmt: skip


def _same(one: Sequence[Rollout], other: Sequence[Rollout]) -> int:
    return sum(a.token_ids == b.token_ids for a, b in zip(one, other, strict=True))


def _apart(one: Sequence[Rollout], other: Sequence[Rollout]) -> float:
    """Return the largest difference of log-probabilities where the texts are the same."""
    same = [(a, b) for a, b in zip(one, other, strict=True) if a.token_ids == b.token_ids]
    pairs = [pair for a, b in same for pair in zip(a.logprobs, b.logprobs, strict=True)]
    return max((abs(x - y) for x, y in pairs), default=float("nan"))


@torch.no_grad()
def _own_difference(model: Any, rollouts: Sequence[Rollout]) -> float:
    """Return the largest difference to log-probabilities of a plain forward over each text."""
    worst = 0.0
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_token_ids + rollout.token_ids], device=model.device)
        first = len(rollout.prompt_token_ids)
        params = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, first - 1 : -1].float(), -1)
        own = params.gather(1, ids[0, first:, None])[:, 0]
        worst = max(worst, float((own - torch.tensor(rollout.logprobs, device=own.device)).abs().max()))
    return worst


def _bfloat16(bench: Bench, prompts: Sequence[int], limits: Sequence[int]) -> None:
    """Note how often rounding changes a token: there is no right text in bfloat16, only a rate."""
    model = make_model(bench, "135M", torch.bfloat16)
    asked = requests(model, prompts, limits)
    base = make_engine(model, 8).generate(asked, SamplingParams())
    for variant, options in {"4 slots": {}, **VARIANTS}.items():
        texts = make_engine(model, 4 if variant == "4 slots" else 8, **options).generate(asked, SamplingParams())
        pairs = [p for a, b in zip(base, texts, strict=True) for p in zip(a.token_ids, b.token_ids, strict=True)]
        rate = sum(a != b for a, b in pairs) / len(pairs)
        bench.note(BFLOAT16, variant, same=_same(base, texts), of=len(asked), differing_tokens=round(rate, 4))


def _lora(bench: Bench, model: Any, asked: Sequence[RolloutRequest]) -> None:
    """Write with adapters, change them in place as an optimizer does, and write again: graphs must see the change."""
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    engine, params = make_engine(adapted, 8), PARAMS["greedy"]
    for change in range(2):
        for name, each in adapted.named_parameters():
            if "lora_" in name:
                seed = torch.Generator(bench.device).manual_seed(len(name) + change)
                each.data.copy_(0.05 * torch.randn(each.shape, generator=seed, device=bench.device))
        rollouts, theirs = engine.generate(asked, params), generate(bench, adapted, asked, sample=False)
        same = sum(list(r.token_ids) == text[: len(r.token_ids)] for r, text in zip(rollouts, theirs, strict=True))
        bench.note(
            LORA, "first adapter" if not change else "changed in place", same=same, of=len(asked),
            logprob_difference=_own_difference(adapted, rollouts),
        )  # fmt: skip
