"""Blended texts are what plain forwards of both prompts give, mixed and drawn with the same noise, in every way."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from scipy.optimize import brentq
from toys import END, FAMILIES, ask, engine, make, tokens, with_adapter

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.models.policy import body, head_of
from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.rollout.attention import slot_attention_on
from onpolicy_sdft.rollout.backend import NO_RECORD, ignore_progress
from onpolicy_sdft.rollout.blending import divergence, mix, within_budget
from onpolicy_sdft.rollout.grid import GridCall, GridStep, OnTheDevice
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.rollout.noise import key_words
from onpolicy_sdft.rollout.sampling import draw, warpers
from onpolicy_sdft.types import Blend, NoiseKey, RecordOptions, RolloutRequest, SamplingParams

PARAMS = {
    "own": SamplingParams(),
    "greedy": SamplingParams(0.0),
    "filtered": SamplingParams(0.8, 20, 0.9),
    "penalised": SamplingParams(0.8, repetition_penalty=1.3),
}
FLOATS = ("logprobs", "sampling_logprobs", "entropies", "bare_logprobs", "blends")


def pair(num=5, weight=0.4, budget=None, limit=8, every=1):
    """Requests of which every so-many-th is blended; the bare prompt is often the end of the other, or longer."""
    found = []
    for index, request in enumerate(ask(num, limit)):
        prompt = request.prompt_token_ids
        bare = (*prompt[len(prompt) // 2 :], 7) if index % 3 else (*prompt, *range(20, 32))
        found.append(request if index % every else replace(request, blend=Blend(bare, weight, budget)))
    return found


@torch.no_grad()
def plain(model, request, params):
    """A blended text by whole forwards of both prompts, a token at a time, with its figures."""
    texts = [list(prompt) for prompt in request.prompts]
    figures = {name: [] for name in FLOATS}
    written = []
    while len(written) < request.max_new_tokens and END not in written:
        own, bare = (
            head_of(model).logits(body(model)(input_ids=torch.tensor([ids])).last_hidden_state[0, -1:]).double()
            for ids in texts
        )
        p, s = own.log_softmax(-1), bare.log_softmax(-1)
        b = smallest(p, s, request.blend)
        mixed = ((1 - b) * own + b * bare).clone()
        q = mixed.log_softmax(-1)
        processed = warpers(params)(torch.tensor([texts[0]]), mixed)
        words, place = key_words([request.key]), torch.tensor([len(written)])
        token = int(draw(mixed, processed, torch.tensor([params.greedy]), words, place).token_ids)
        for name, value in (
            ("logprobs", p[0, token]),
            ("bare_logprobs", s[0, token]),
            ("sampling_logprobs", 0.0 if params.greedy else processed.log_softmax(-1)[0, token]),
            ("entropies", -(q.exp() * q).sum()),
            ("blends", b),
        ):
            figures[name].append(float(value))
        written.append(token)
        for text in texts:
            text.append(token)
    return tuple(written), figures


def smallest(p, s, blend):
    """The smallest b within the budget, to more places than the engine finds it."""
    if blend.budget is None or kl(p, s, blend.weight) <= blend.budget:
        return blend.weight
    return brentq(lambda b: kl(p, s, b) - blend.budget, blend.weight, 1.0)


def kl(p, s, b):
    q = ((1 - b) * p + b * s).log_softmax(-1)
    return float((q.exp() * (q - s)).sum())


def assert_plain(model, requests, params, *tries, closeness=1e-6):
    for request, *rollouts in zip(requests, *tries, strict=True):
        written, figures = plain(model, request, params)
        for rollout in rollouts:
            assert rollout.token_ids == written
            for name in FLOATS:
                assert getattr(rollout, name) == pytest.approx(figures[name], abs=closeness), name


# At the ends "own" and "filtered" are those of the test below that compares with a prompt alone.
AT_AN_END = {("greedy", 0.0), ("penalised", 1.0)}


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        pytest.param(*case, marks=() if case[1] == 0.3 or case in AT_AN_END else (pytest.mark.slow,))
        for case in itertools.product(PARAMS, [0.0, 0.3, 1.0])
    ],
)
@pytest.mark.few(2)
def test_tokens_and_figures_are_those_of_plain_forwards_mixed(name, weight):
    model, requests, params = make("llama", torch.float64), pair(4, weight=weight, limit=6), PARAMS[name]
    shapes = ({"num_slots": 2, "max_draft_tokens": 0}, {"num_slots": 5}, {"num_slots": 12, "prefill_tokens": 9})
    assert_plain(model, requests, params, *(engine(model, **shape).generate(requests, params) for shape in shapes))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt_oss"}))  # its experts know no float64
@pytest.mark.few(3)
def test_every_family_is_blended(family):
    model, requests = make(family, torch.float64), pair(3, weight=0.3)
    rollouts = engine(model).generate(requests, SamplingParams())
    assert_plain(model, requests, SamplingParams(), rollouts, closeness=1e-5)


def test_with_no_weight_it_is_the_own_text_and_with_all_of_it_the_bare_prompts():
    model = with_adapter(make("qwen2", torch.float64))
    for weight, prompts in ((0.0, 0), (1.0, 1)):
        requests = pair(weight=weight, limit=6)
        alone = [replace(r, prompt_token_ids=r.prompts[prompts], blend=None) for r in requests]
        for params in (PARAMS["own"], PARAMS["filtered"]):
            blended, expected = (engine(model).generate(each, params) for each in (requests, alone))
            assert tokens(blended) == tokens(expected)
            for mine, theirs in zip(blended, expected, strict=True):
                assert (mine.logprobs, mine.bare_logprobs)[prompts] == pytest.approx(theirs.logprobs, abs=1e-9)
                assert mine.sampling_logprobs == pytest.approx(theirs.sampling_logprobs, abs=1e-9)


def test_drafts_are_verified_against_the_blended_law():
    model, params = make("llama", torch.float64), SamplingParams(0.5)
    requests = pair(weight=0.4, limit=30)
    without = tokens(engine(model, max_draft_tokens=0).generate(requests, params))
    helped = [replace(r, draft_token_ids=(text[:9] + text[11:],)) for r, text in zip(requests, without, strict=True)]
    for grid in (False, True):
        one = engine(model, grid=grid)
        assert tokens(one.generate(helped, params)) == without
        assert one.stats.num_accepted_tokens > 20


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.few(1)
def test_calls_may_mix_requests_that_are_blended_with_others(grid):
    model, requests, params = make("llama", torch.float64), pair(5, limit=6, every=2), SamplingParams(0.9)
    alone = [engine(model, grid=grid).generate([request], params)[0] for request in requests]
    for num_slots in (2, 3, 8):
        mixed = engine(model, grid=grid, num_slots=num_slots).generate(requests, params)
        assert tokens(mixed) == tokens(alone)
        assert [bool(rollout.bare_logprobs) for rollout in mixed] == [r.blend is not None for r in requests]
        for mine, theirs in zip(mixed, alone, strict=True):
            for name in FLOATS:
                assert getattr(mine, name) == pytest.approx(getattr(theirs, name), abs=1e-9)


def test_a_request_without_a_blend_after_a_call_with_some_is_written_as_before():
    model, params = make("llama", torch.float64), SamplingParams()
    for grid in (False, True):
        one = engine(model, grid=grid)
        before = one.generate(ask(5, 8), params)
        one.generate(pair(5), params)
        assert one.generate(ask(5, 8), params) == before


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("own", None), ("own", 0.2), ("greedy", 0.2), ("filtered", None), ("filtered", 0.2), ("penalised", 0.2),
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in ("greedy", "penalised")),
    ],
)  # fmt: skip
@pytest.mark.few(2)
def test_the_grid_writes_what_the_ragged_path_writes(name, budget):
    model, params = make("llama", torch.float64), PARAMS[name]
    requests = pair(5, budget=budget, limit=6, every=2) + pair(3, weight=0.7, limit=6)[1:]
    ragged = engine(model, num_slots=5, max_draft_tokens=0).generate(requests, params)
    helped = [  # half of the drafts are what will be written, with an error in it
        replace(r, draft_token_ids=((*text[:4], 7, *text[5:]),) if index % 2 else r.draft_token_ids)
        for index, (r, text) in enumerate(zip(requests, tokens(ragged), strict=True))
    ]
    accepted = []
    for grid, max_drafts in ((True, 0), (True, 3), (False, 3)):
        one = engine(model, grid=grid, num_slots=5, max_draft_tokens=max_drafts)
        written = one.generate(helped, params)
        accepted.append(one.stats.num_accepted_tokens)
        assert tokens(written) == tokens(ragged)
        for mine, theirs in zip(written, ragged, strict=True):
            for each in FLOATS:
                assert getattr(mine, each) == pytest.approx(getattr(theirs, each), abs=1e-6)
    assert accepted[0] == 0 < accepted[1]
    assert accepted[2] > 0


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.few(2)
def test_transformers_generate_writes_the_same(params):
    model = make("llama", torch.float64)
    requests = pair(5, limit=6, every=2) + pair(4, budget=0.1, limit=6)[1:]
    theirs = HFBackend(model, (END,), END, 3).generate(requests, params)
    ours = engine(model).generate(requests, params)
    assert tokens(theirs) == tokens(ours)
    for mine, other in zip(ours, theirs, strict=True):
        for name in FLOATS:
            assert getattr(other, name) == pytest.approx(getattr(mine, name), abs=1e-4)


def test_samples_of_one_prompt_share_it_and_differ():
    model, (request, *_) = make("llama", torch.float64), pair()
    prompt = tuple(range(3, 40))
    requests = [
        replace(request, prompt_token_ids=prompt, blend=Blend((*prompt[:12], 5), 0.5), key=NoiseKey(0, 0, "x", sample))
        for sample in range(4)
    ]
    one = engine(model, num_slots=8)
    rollouts = one.generate(requests, SamplingParams())
    assert one.stats.num_shared_tokens >= 3 * 36
    assert len(set(tokens(rollouts))) == 4
    assert_plain(model, requests, SamplingParams(), rollouts)


class Again:
    """Asks for one more blended text once something has ended."""

    def __init__(self, more):
        self.left = list(more)

    def ended(self, index, rollout):
        pass

    def more(self, num_ended):
        return [self.left.pop()] if self.left else []


@pytest.mark.parametrize(
    ("num", "options"), [(4, {"num_slots": 3}), (1, {"num_slots": None}), (4, {"num_slots": 4, "grid": True})]
)
@pytest.mark.few(1)
def test_blended_requests_may_join_a_call_that_had_none(num, options):
    """Where its slots hold no pair, as one slot does not, they are written in a call of their own."""
    model, params, more = make("llama", torch.float64), SamplingParams(), pair(3)
    written = engine(model, **options).generate(ask(num, 8), params, listener=Again(more))
    assert tokens(written[:num]) == tokens(engine(model).generate(ask(num, 8), params))
    assert_plain(model, more[::-1], params, written[num:])


def test_a_pair_that_joins_a_call_for_which_one_slot_was_asked_is_refused():
    with pytest.raises(ConfigError, match=r"num_slots=1.*takes 2 slots"):
        engine(make("llama"), num_slots=1).generate(ask(2, 4), SamplingParams(), listener=Again(pair(1)))


def test_a_call_with_memory_for_one_slot_says_that_a_pair_takes_two():
    model = make("llama")
    with pytest.raises(ConfigError, match=r"2 slots: it is blended.* Fix"):
        engine(model, num_slots=None, kv_gib=60e-6).generate(pair(1, limit=8), SamplingParams())


def test_slots_that_are_given_back_leave_room_for_a_pair():
    model = make("llama")
    one = engine(model, num_slots=2)
    before = tokens(one.generate(pair(3), SamplingParams()))
    assert one.release()
    assert tokens(one.generate(pair(3), SamplingParams())) == before


def test_what_is_recorded_is_the_teachers_own_law():
    model, requests, record = make("llama", torch.float64), pair(4), RecordOptions(hidden=True, top_k=3)
    for grid in (False, True):
        for rollout in engine(model, grid=grid).generate(requests, SamplingParams(), record=record):
            ids = torch.tensor([[*rollout.prompt_token_ids, *rollout.token_ids]])
            with torch.no_grad():
                hidden = body(model)(input_ids=ids).last_hidden_state[0, len(rollout.prompt_token_ids) - 1 : -1]
            torch.testing.assert_close(rollout.hidden, hidden)
            top = head_of(model).logits(hidden).log_softmax(-1).topk(3)
            torch.testing.assert_close(rollout.top.logprobs, top.values)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_budget_bounds_every_token_and_raises_the_weight_no_further_than_it_must(weight):
    model, requests = make("llama", torch.float64), pair(weight=weight, budget=0.15)
    one = engine(model)
    rollouts = one.generate(requests, SamplingParams())
    assert_plain(model, requests, SamplingParams(), rollouts, closeness=1e-4)
    blends = [b for rollout in rollouts for b in rollout.blends]
    assert min(blends) >= weight
    assert any(b > weight for b in blends)
    assert one.stats.figures()["rollout/blend"] == pytest.approx(sum(blends) / len(blends))


def test_the_smallest_blend_weight_within_the_budget_is_found():
    generator = torch.Generator().manual_seed(0)
    own, bare = (5 * torch.randn(40, 60, generator=generator, dtype=torch.float64) for _ in range(2))
    own[0, 3] = bare[1, 4] = torch.finfo(torch.float64).min
    logprobs = bare.log_softmax(-1)
    weights = torch.linspace(0, 1, 21, dtype=torch.float64)
    values = torch.stack([divergence(own, logprobs, w.expand(40)) for w in weights])
    assert (values.diff(dim=0) <= 1e-12).all()
    assert values[-1].abs().max() < 1e-12
    least = torch.full((40,), 0.1, dtype=torch.float64)
    budgets = torch.tensor([0.0, 0.01, 0.5, 1e9, torch.inf], dtype=torch.float64).repeat(8)
    found = within_budget(own, bare, least, budgets)
    assert (found >= least).all()
    assert (divergence(own, logprobs, found) <= budgets + 1e-12).all()
    assert (found[3::5] == 0.1).all()
    a_little_less = found - 1e-4
    moved = found > least
    assert (divergence(own, logprobs, a_little_less)[moved] > budgets[moved]).all()


def test_mixed_logits_are_exactly_either_ones_at_the_ends():
    own, bare = torch.randn(3, 9), torch.randn(3, 9) * 1e3
    assert torch.equal(mix(own, bare, torch.zeros(3)), own)
    assert torch.equal(mix(own, bare, torch.ones(3)), bare)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("budget", [None, 0.2])
def test_a_step_reads_nothing_on_the_host_and_makes_nothing_there(params, budget):
    model, requests = make("llama"), pair(3, budget=budget, every=2)
    one = engine(model, grid=True, num_slots=6)
    with no_trace(model), one.weights.open(), slot_attention_on(model):
        pool = one._make_pool(requests, NO_RECORD)
        call = GridCall(one, model, pool, requests, params, ignore_progress, NO_RECORD)
        call._admit()
        step = GridStep(call, 4, 3)
        step.load(call.scheduler.live)
        step.run()
        with OnTheDevice():
            step.run()


def test_a_request_counts_its_prompts():
    request = RolloutRequest((1, 2), NoiseKey(0, 0, "x"), 3)
    assert request.prompts == ((1, 2),)
    assert replace(request, blend=Blend((3,), 0.5)).prompts == ((1, 2), (3,))
