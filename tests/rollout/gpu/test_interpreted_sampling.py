"""The kernels that draw and settle, against torch's operations, in Triton's interpreter."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from onpolicy_sdft.models.policy import Head
from onpolicy_sdft.rollout.blending import Pairs
from onpolicy_sdft.rollout.decode import Rows, sample_and_verify
from onpolicy_sdft.rollout.gpu.filters import find_floors
from onpolicy_sdft.rollout.gpu.sampling import draw_rows
from onpolicy_sdft.rollout.noise import key_words
from onpolicy_sdft.rollout.sampling import BatchSamplingParams, Vocabulary
from onpolicy_sdft.rollout.slots import SlotTexts
from onpolicy_sdft.types import NoiseKey, SamplingParams

CPU = torch.device("cpu")
OWN = [SamplingParams(), SamplingParams(0.0)]
SCALED = [SamplingParams(0.7), SamplingParams(0.0), SamplingParams(1.6), SamplingParams()]
FILTERED = [
    SamplingParams(1.3, top_k=7),
    SamplingParams(top_p=0.7),
    SamplingParams(),
    SamplingParams(0.9, top_k=60, top_p=0.8),
    SamplingParams(min_p=0.1),
    SamplingParams(0.0, top_k=3),
    SamplingParams(0.5, top_k=30, top_p=0.95, min_p=0.01),
    SamplingParams(top_p=0.999),
    SamplingParams(1.2, top_k=1),
]
PENALISED = [SamplingParams(0.8, repetition_penalty=1.4), SamplingParams(), SamplingParams(0.0, repetition_penalty=0.7)]
PENALISED_AND_FILTERED = [SamplingParams(top_k=5, repetition_penalty=0.7), SamplingParams(0.8, 9, 0.9, 0.0, 1.3)]
PARAMS = {
    "own": OWN, "scaled": SCALED, "filtered": FILTERED, "penalised": PENALISED, "both": PENALISED_AND_FILTERED,
}  # fmt: skip


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_texts(num_slots: int, vocab: int, seed: int, width: int) -> SlotTexts:
    """Slots in the middle of their texts; the padding slot is all zeros."""
    texts, g = SlotTexts.make(num_slots, 60, 30, 70, torch.float32, CPU), generator(seed)

    def draw(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (num_slots,), generator=g)

    texts.tokens[:-1].random_(0, vocab, generator=g)
    texts.starts[:-1] = draw(1, 9)
    texts.lengths[:-1] = texts.starts[:-1] + draw(-1, 15)
    texts.limits[:-1] = texts.lengths[:-1] + 1 - texts.starts[:-1] + draw(1, width + 3)
    texts.words[:-1].random_(0, 2**32, generator=g)
    texts.draft_source[:-1].random_(0, vocab, generator=g)
    texts.draft_lengths[:-1] = draw(0, 30)
    return texts


def grid(slots: list[int], num_drafts: list[int], width: int) -> Rows:
    num_rows = len(slots)
    return Rows(
        torch.tensor(slots), torch.tensor(num_drafts), torch.arange(num_rows).repeat_interleave(width),
        torch.arange(width).repeat(num_rows), width,
    )  # fmt: skip


def both(texts, batch_params, stops, rows, raw, head, hidden=None):
    """Settle twice, each on its own copy: with torch's operations, and with kernels."""
    slow, fast = copy.deepcopy(texts), copy.deepcopy(texts)
    expected = sample_and_verify(slow, batch_params, stops, rows, raw.clone(), head, hidden, None)
    found = sample_and_verify(fast, batch_params, stops, rows, raw, head, hidden, None, kernels=True)
    return (slow, expected), (fast, found)


def assert_same(slow, expected, fast, found):
    for name in ("kept_B", "accepted_B", "done_B"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name, one in vars(slow).items():
        other = getattr(fast, name)
        if one is None:
            assert other is None
        elif one.dtype == torch.int64:
            assert torch.equal(other[:-1], one[:-1]), name
        else:
            torch.testing.assert_close(other[:-1], one[:-1], rtol=1e-5, atol=1e-5, msg=name)
    for name in ("lengths", "draft_lengths"):
        assert getattr(fast, name)[-1] == 0


@pytest.mark.parametrize("each_params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("vocab", [1, 64, 65, 500, 4099])
@pytest.mark.parametrize(("num_rows", "spread"), [(1, 3.0), (2, 0.01), (9, 3.0)])
@pytest.mark.few(8)
def test_rows_are_drawn_as_torch_draws_them(num_rows, spread, vocab, each_params):
    texts = make_texts(num_rows, vocab, seed=vocab, width=1)
    batch_params = BatchSamplingParams.of(
        [each_params[i % len(each_params)] for i in range(num_rows + 1)], Vocabulary(vocab), CPU
    )
    raw = torch.randn(num_rows, vocab, generator=generator(num_rows)) * spread
    rows = grid(list(range(num_rows)), [0] * num_rows, 1)
    slow, fast = both(texts, batch_params, torch.tensor([0]), rows, raw, Head(raw))
    assert_same(*slow, *fast)


@pytest.mark.parametrize("each_params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize(
    ("num_tokens", "vocab", "missing"),
    [
        (1, 64, ()),
        (60, 64, (0, 59)),
        (64, 70, ()),
        (400, 500, (3, *range(64, 128), 200)),
        (2050, 4099, ()),
        (70, 70, (5,)),
    ],
)
@pytest.mark.parametrize("num_rows", [1, 9])
@pytest.mark.few(4)
def test_ids_without_a_token_are_never_drawn(num_rows, num_tokens, vocab, missing, each_params):
    texts = make_texts(num_rows, vocab, seed=vocab, width=1)
    texts.tokens %= num_tokens
    batch_params = BatchSamplingParams.of(
        [each_params[i % len(each_params)] for i in range(num_rows + 1)], Vocabulary(num_tokens, missing), CPU
    )
    raw = torch.randn(num_rows, vocab, generator=generator(num_rows)) * 3
    raw[:, [*missing, *range(num_tokens, vocab)]] += 5.0
    rows = grid(list(range(num_rows)), [0] * num_rows, 1)
    slow, fast = both(texts, batch_params, torch.tensor([0]), rows, raw, Head(raw))
    assert_same(*slow, *fast)
    written = fast[0].tokens[range(num_rows), texts.lengths[:num_rows] + 1].tolist()
    assert not {*written} & {*missing, *range(num_tokens, vocab)}


@pytest.mark.parametrize("each_params", [OWN, FILTERED], ids=["own", "filtered"])
@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("stops", [[5], [5, 6, 0], [499]])
@pytest.mark.few(2)
def test_drafts_are_kept_up_to_the_first_that_differs_or_ends_the_text(stops, width, each_params):
    num_slots, vocab = 7, 12
    texts = make_texts(num_slots, vocab, seed=1, width=width)
    batch_params = BatchSamplingParams.of(
        [each_params[i % len(each_params)] for i in range(num_slots + 1)], Vocabulary(vocab), CPU
    )
    # Rows in any order, some slots idle, and padding; as many drafts as fit, some, none.
    slots = [3, 0, 6, 7, 5, 1, 7, 2]
    num_drafts = [min(width - 1, n) for n in (9, 1, 9, 9, 0, 9, 0, 2)]
    rows, raw = grid(slots, num_drafts, width), torch.randn(8 * width, vocab, generator=generator(2))
    slots_N = rows.slots_B[rows.row_N]
    # The drafts are what will be drawn, but for the last row's first: then every length of what is kept comes about.
    drawn = draw_rows(texts, batch_params, rows, raw, Head(raw), None).token_ids
    texts.tokens[slots_N, texts.lengths[slots_N] + rows.offset_N + 1] = drawn
    texts.tokens[2, texts.lengths[2] + 1] += 1
    texts.tokens[6, texts.lengths[6] + 2] += 1
    slow, fast = both(texts, batch_params, torch.tensor(stops), rows, raw, Head(raw))
    assert_same(*slow, *fast)
    if width == 5 and stops == [499]:
        assert fast[1].accepted_B.tolist()[:3] == [4, 1, 1]
        assert fast[1].kept_B.tolist()[:3] == [5, 2, 2]


@pytest.mark.parametrize("head", [(0.25, None), (1.0, 5.0), (3.0, 2.0), (0.125, 30.0)])
@pytest.mark.parametrize("each_params", PARAMS.values(), ids=PARAMS)
@pytest.mark.few(3)
def test_scale_and_soft_cap_are_the_heads(each_params, head):
    texts = make_texts(5, 700, seed=3, width=1)
    raw = torch.randn(5, 700, generator=generator(4)) * 20
    batch_params = BatchSamplingParams.of([each_params[i % len(each_params)] for i in range(6)], Vocabulary(700), CPU)
    slow, fast = both(
        texts, batch_params, torch.tensor([1]), grid([0, 1, 2, 3, 4], [0] * 5, 1), raw, Head(raw, None, *head)
    )
    assert_same(*slow, *fast)


@pytest.mark.parametrize("each_params", PARAMS.values(), ids=PARAMS)
@pytest.mark.few(2)
def test_rows_may_lie_apart_and_logits_may_be_infinite_equal_large_and_tiny(each_params):
    wide = torch.randn(6, 1000, generator=generator(5))
    raw = wide[:, 100:800]
    raw[0, ::2] = -torch.inf
    raw[1, 3:] = -torch.inf
    raw[2] = raw[2].mul(2).round()  # ties
    raw[3] *= 1e4
    raw[4] *= 1e-6
    raw[5] = raw[5].bfloat16().float()
    assert not raw.is_contiguous()
    texts = make_texts(6, 700, seed=6, width=1)
    batch_params = BatchSamplingParams.of([each_params[i % len(each_params)] for i in range(7)], Vocabulary(700), CPU)
    rows = grid([0, 1, 2, 3, 4, 5], [0] * 6, 1)
    (slow, expected), (fast, found) = both(texts, batch_params, torch.tensor([1]), rows, raw.contiguous(), Head(raw))
    # Torch's entropy is a difference of numbers of the logits' size: not so good where they are large.
    places = texts.lengths[3] + 1 - texts.starts[3]
    assert fast.entropies[3, places] == pytest.approx(float(slow.entropies[3, places]), abs=0.02)
    slow.entropies[3, places] = fast.entropies[3, places]
    assert_same(slow, expected, fast, found)
    strided = copy.deepcopy(texts)
    sample_and_verify(strided, batch_params, torch.tensor([1]), rows, raw, Head(raw), None, None, kernels=True)
    for name in ("tokens", "logprobs", "sampling_logprobs", "entropies"):
        assert torch.equal(getattr(strided, name), getattr(fast, name))


def test_equal_logits_give_a_greedy_row_the_first_of_them():
    raw = torch.zeros(3, 9000)
    raw[1, [70, 4000, 8999]] = 1.0
    raw[2, 8999] = 1.0
    texts, batch_params = (
        make_texts(3, 9000, seed=0, width=1),
        BatchSamplingParams.of([SamplingParams(0.0)] * 4, Vocabulary(9000), CPU),
    )
    drawn = draw_rows(texts, batch_params, grid([0, 1, 2], [0] * 3, 1), raw, Head(raw), None)
    assert drawn.token_ids.tolist() == raw.argmax(-1).tolist() == [0, 70, 8999]


def test_a_row_shared_by_programs_gives_what_one_program_gives(monkeypatch):
    raw = torch.randn(4, 20_000, generator=generator(7)) * 2
    texts = make_texts(4, 20_000, seed=8, width=1)
    rows = grid([0, 1, 2, 3], [0] * 4, 1)
    for each_params in (OWN, FILTERED):
        batch_params = BatchSamplingParams.of(
            [each_params[i % len(each_params)] for i in range(5)], Vocabulary(20_000), CPU
        )
        found = []
        for programs in (1, 12, 512):
            monkeypatch.setattr("onpolicy_sdft.rollout.gpu.sampling._PROGRAMS", programs)
            found.append(draw_rows(texts, batch_params, rows, raw, Head(raw), None))
        for other in found[1:]:
            assert torch.equal(other.token_ids, found[0].token_ids)
            torch.testing.assert_close(other.logprobs, found[0].logprobs)
            torch.testing.assert_close(other.sampling_logprobs, found[0].sampling_logprobs)
            torch.testing.assert_close(other.entropies, found[0].entropies)


@pytest.mark.slow
def test_what_a_row_keeps_is_exact_up_to_the_rounding_of_a_sum():
    """Every combination of filters; a token may differ where the probability above it is as good as top-p."""
    combinations = itertools.product((0.6, 1.0, 1.7), (0, 1, 5, 80), (0.01, 0.5, 0.95, 1.0), (0.0, 0.02))
    each_params = [SamplingParams(*each) for each in combinations]
    vocab = 700
    raw = torch.randn(len(each_params), vocab, generator=generator(9)) * 3
    raw[::3] = raw[::3].round()  # ties
    batch_params = BatchSamplingParams.of(each_params, Vocabulary(vocab), CPU)
    processed = batch_params.process(raw, None)
    with_padding = BatchSamplingParams.of([*each_params, SamplingParams()], Vocabulary(vocab), CPU)
    floors = find_floors(
        with_padding, grid(list(range(len(each_params))), [0] * len(each_params), 1), raw, None, None, None
    )
    ours, theirs = raw >= floors[:, None], processed > -torch.inf
    for row in (ours != theirs).any(-1).nonzero()[:, 0].tolist():
        params = each_params[row]
        scores = (raw[row] / params.temperature).double().sort(descending=True).values
        mass = torch.softmax(scores[: params.top_k or vocab], 0)
        above = mass.cumsum(0) - mass
        assert (above - params.top_p).abs().min() < 1e-5, params
    assert (ours == theirs).all(-1).float().mean() > 0.97


def test_logits_of_half_precision_are_read_as_they_are():
    """Triton's interpreter multiplies matrices of bfloat16 wrongly, but converts its numbers well."""
    texts, rows = make_texts(3, 700, seed=2, width=1), grid([0, 1, 2], [0] * 3, 1)
    for dtype in (torch.bfloat16, torch.float16):
        raw = (torch.randn(3, 700, generator=generator(1)) * 3).to(dtype)
        for each_params in (OWN, FILTERED, PENALISED):
            batch_params = BatchSamplingParams.of(
                [each_params[i % len(each_params)] for i in range(4)], Vocabulary(700), CPU
            )
            slow, fast = both(texts, batch_params, torch.tensor([1]), rows, raw, Head(raw, None, 0.5))
            assert_same(*slow, *fast)


def test_logits_that_are_no_numbers_show_and_no_token_is_outside_the_vocabulary():
    raw = torch.randn(4, 150, generator=generator(1))
    raw[0, 70] = raw[1] = torch.nan
    raw[2, 3] = torch.inf
    texts, rows = make_texts(4, 150, seed=2, width=1), grid([0, 1, 2, 3], [0] * 4, 1)
    for each_params in (OWN, SCALED, FILTERED):
        batch_params = BatchSamplingParams.of(
            [each_params[i % len(each_params)] for i in range(5)], Vocabulary(150), CPU
        )
        drawn = draw_rows(texts, batch_params, rows, raw, Head(raw), None)
        assert ((drawn.token_ids >= 0) & (drawn.token_ids < 150)).all()
        assert drawn.logprobs.isnan().tolist() == [True, True, True, False]


def test_penalised_logits_decide_the_draw_and_the_models_own_are_recorded():
    """Covered by the comparison with torch; here the two differ for certain."""
    raw = torch.zeros(1, 70)
    raw[0, 3], raw[0, 5] = 9.0, 1.0
    texts = make_texts(1, 70, seed=0, width=1)
    texts.tokens[0] = 3
    batch_params = BatchSamplingParams.of([SamplingParams(0.0, repetition_penalty=1e6)] * 2, Vocabulary(70), CPU)
    sample_and_verify(
        texts, batch_params, torch.tensor([1]), grid([0], [0], 1), raw, Head(raw), None, None, kernels=True
    )  # fmt: skip
    place = texts.lengths[0] - texts.starts[0]
    assert texts.tokens[0, texts.lengths[0]] == 5
    assert texts.logprobs[0, place] == pytest.approx(float(torch.log_softmax(raw[0], -1)[5]))


def test_hidden_states_and_likeliest_tokens_are_recorded():
    texts = make_texts(3, 90, seed=1, width=3)
    texts.hidden = torch.zeros(4, 30, 8)
    texts.top_token_ids, texts.top_logprobs = torch.zeros(4, 30, 4, dtype=torch.int64), torch.zeros(4, 30, 4)
    batch_params = BatchSamplingParams.of([SamplingParams(0.8, repetition_penalty=1.2)] * 4, Vocabulary(90), CPU)
    raw, hidden = torch.randn(9, 90, generator=generator(3)), torch.randn(9, 8, generator=generator(4))
    slow, fast = both(texts, batch_params, torch.tensor([4]), grid([2, 0, 1], [2, 1, 0], 3), raw, Head(raw), hidden)
    assert_same(*slow, *fast)
    assert fast[0].hidden.any()


class OnTheDevice(TorchDispatchMode):
    """Fail on what a capture on CUDA fails on: values read on the host, shapes that follow from values, host data."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "lift_fresh", "equal", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not any(name.startswith(refused) for refused in self.REFUSED), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("head", [{}, {"scale": 0.5, "softcap": 3.0}], ids=["plain", "bent"])
@pytest.mark.parametrize("budgets", [[], [0.1, 0.5]], ids=["weights", "budgets"])
@pytest.mark.parametrize("each_params", PARAMS.values(), ids=PARAMS)
@pytest.mark.few(2)
def test_blended_rows_are_drawn_as_torch_draws_them(each_params, budgets, head):
    texts = make_texts(3, 90, seed=1, width=3)
    texts.top_token_ids, texts.top_logprobs = torch.zeros(4, 30, 4, dtype=torch.int64), torch.zeros(4, 30, 4)
    texts.pairs = Pairs.make(3, 30, torch.float32, CPU)
    texts.pairs.reset()
    texts.pairs.weights[:3] = torch.tensor([0.3, 1.0, 0.0])
    texts.pairs.budgets[: len(budgets)] = torch.tensor(budgets)
    texts.pairs.is_budgeted = bool(budgets)
    batch_params = BatchSamplingParams.of([each_params[i % len(each_params)] for i in range(4)], Vocabulary(90), CPU)
    raw = torch.randn(18, 90, generator=generator(3))
    pair = torch.arange(9) + torch.tensor([0, 9, 9]).repeat_interleave(3)  # slot 2 is not blended
    rows = replace(grid([2, 0, 1], [2, 1, 0], 3), pair_N=pair)
    (slow, expected), (fast, found) = both(texts, batch_params, torch.tensor([4]), rows, raw, Head(raw, **head))
    ours, theirs = vars(fast.pairs), vars(slow.pairs)
    slow.pairs = fast.pairs = None
    assert_same(slow, expected, fast, found)
    for name in ("bare_logprobs", "blends"):
        assert ours[name].any()
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)
    stops = torch.tensor([4])
    with OnTheDevice():
        sample_and_verify(texts, batch_params, stops, rows, raw, Head(raw), None, None, kernels=True)


@pytest.mark.parametrize("each_params", PARAMS.values(), ids=PARAMS)
@pytest.mark.few(2)
def test_nothing_is_read_on_the_host(each_params):
    texts = make_texts(3, 90, seed=1, width=3)
    texts.top_token_ids, texts.top_logprobs = torch.zeros(4, 30, 4, dtype=torch.int64), torch.zeros(4, 30, 4)
    batch_params = BatchSamplingParams.of([each_params[i % len(each_params)] for i in range(4)], Vocabulary(90), CPU)
    raw, rows, stops = torch.randn(9, 90), grid([2, 0, 1], [2, 1, 0], 3), torch.tensor([4])
    with OnTheDevice():
        sample_and_verify(texts, batch_params, stops, rows, raw, Head(raw), None, None, kernels=True)


@pytest.mark.slow
def test_draws_follow_the_law():
    num, vocab, parts = 500, 130, 13
    logits = torch.linspace(-2, 2, vocab)[torch.randperm(vocab, generator=generator(0))]
    texts = SlotTexts.make(num, 4, 4, 4, torch.float32, CPU)
    texts.words[:-1] = key_words([NoiseKey(0, step, "x") for step in range(num)])
    batch_params = BatchSamplingParams.of([SamplingParams(0.7)] * (num + 1), Vocabulary(vocab), CPU)
    rows = grid(list(range(num)), [0] * num, 1)
    drawn = draw_rows(texts, batch_params, rows, logits.expand(num, vocab), Head(logits), None)
    counts = torch.bincount(drawn.token_ids, minlength=vocab).unflatten(0, (parts, -1)).sum(-1)
    params = torch.softmax(logits.double() / 0.7, -1).unflatten(0, (parts, -1)).sum(-1)
    assert stats.chisquare(counts, params * num, sum_check=False).pvalue > 1e-3
