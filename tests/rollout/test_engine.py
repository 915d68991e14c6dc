"""The engine writes what transformers' generate writes, whatever its slots, its drafts and the order of requests."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from toys import END, FAMILIES, ask, assert_same_but_for_ties, engine, make, tokens

from onpolicy_sdft.models.policy import body, head_of
from onpolicy_sdft.rollout.backend import NO_RECORD
from onpolicy_sdft.rollout.drafts import lay_out, look_up
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.rollout.sampling import Vocabulary
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.shapes import round_rows, round_tokens
from onpolicy_sdft.types import NoiseKey, RecordOptions, RolloutRequest, SamplingParams

PARAMS = [
    SamplingParams(),
    SamplingParams(0.0),
    SamplingParams(0.7, 20, 0.9, 0.02),
    SamplingParams(0.2, repetition_penalty=1.05),
]
PARAM_NAMES = ["own", "greedy", "filtered", "penalised"]
SHAPES = [
    {"num_slots": 1, "max_draft_tokens": 0},
    {"num_slots": 3, "max_draft_tokens": 5},
    {"num_slots": 16, "max_draft_tokens": 2, "prefill_tokens": 7},
]


@pytest.mark.parametrize("params", PARAMS, ids=PARAM_NAMES)
@pytest.mark.few(1)
def test_tokens_are_generates_for_any_slots_drafts_and_order_in_float64(params):
    model, requests = make("llama", torch.float64), ask(6, 12)
    expected = tokens(HFBackend(model, (END,), END, 3).generate(requests, params))
    requests = with_an_error(requests, expected)
    drafted = accepted = 0
    for shape in SHAPES:
        one = engine(model, **shape)
        assert tokens(one.generate(requests, params)) == expected
        assert tokens(one.generate(requests[::-1], params)) == expected[::-1]
        drafted += one.stats.num_drafted_tokens
        accepted += one.stats.num_accepted_tokens
    assert drafted > accepted > 0


def with_an_error(requests, texts, place=9):
    """Requests whose first draft is a text with an error in it, as last epoch's is, and whose second skips tokens."""
    return [
        dataclasses.replace(each, draft_token_ids=((*text[:place], 3, *text[place + 1 :]), text[::2]))
        for each, text in zip(requests, texts, strict=True)
    ]


FEW = 40
FEWER = Vocabulary(FEW, missing=(0, 7, 8, 33))  # without a token: what is past the end, and some inside


@pytest.fixture(scope="module")
def of_few_ids():
    """A model that writes ids without a token where nothing keeps it from that, and prompts of ids that have one."""
    model = make("llama", torch.float64)
    requests = [
        dataclasses.replace(each, prompt_token_ids=tuple(t % FEW for t in each.prompt_token_ids)) for each in ask(8, 12)
    ]
    anything = {*itertools.chain(*tokens(engine(model).generate(requests, SamplingParams())))}
    assert max(anything) >= FEW
    assert anything & {*FEWER.missing}
    return model, requests


@pytest.mark.parametrize("params", PARAMS, ids=PARAM_NAMES)
@pytest.mark.few(2)
def test_ids_without_a_token_are_never_written_however_likely_they_are(of_few_ids, params):
    model, requests = of_few_ids
    never = set(FEWER.without_token(1000))
    theirs = HFBackend(model, (FEW - 1,), FEW - 1, 3, vocabulary=FEWER).generate(requests, params)
    ours = engine(model, (FEW - 1,), vocabulary=FEWER).generate(requests, params)
    in_a_grid = engine(model, (FEW - 1,), vocabulary=FEWER, grid=True).generate(requests, params)
    assert tokens(ours) == tokens(in_a_grid) == tokens(theirs)
    assert not never & {*itertools.chain(*tokens(ours))}
    for mine, gridded, other in zip(ours, in_a_grid, theirs, strict=True):
        whole = torch.tensor([*mine.prompt_token_ids, *mine.token_ids])
        with torch.no_grad():
            logprobs = model(whole[None]).logits[0, len(mine.prompt_token_ids) - 1 : -1].log_softmax(-1)
        plain = logprobs.gather(-1, torch.tensor(mine.token_ids)[:, None])[:, 0]
        with_token = [each for each in range(FEW) if each not in never]
        left = logprobs[:, with_token].logsumexp(-1)
        for one in (mine, gridded):
            assert one.sampling_logprobs == pytest.approx(other.sampling_logprobs, abs=1e-5)
            assert one.logprobs == pytest.approx(plain.tolist(), abs=1e-5)
            if params == SamplingParams():
                assert one.sampling_logprobs == pytest.approx((plain - left).tolist(), abs=1e-5)


def each_family_under_each_law():
    """Every family under its own law; the others meet what a family may do to its logits, and the rest is slow."""
    cases = []
    quick = {"greedy": ("llama", "gemma2"), "filtered": ("qwen3", "gemma2", "gpt_oss")}
    for name, params in zip(PARAM_NAMES[:3], PARAMS[:3], strict=True):
        for family in FAMILIES:
            marks = () if name == "own" or family in quick[name] else (pytest.mark.slow,)
            cases.append(pytest.param(family, params, marks=marks, id=f"{name}-{family}"))
    return cases


@pytest.mark.parametrize(("family", "params"), each_family_under_each_law())
@pytest.mark.few(3)
def test_every_family_writes_what_generate_writes_in_float32_but_for_ties(family, params):
    model, requests = make(family), ask(6, 16)
    theirs = HFBackend(model, (END,), END, 3).generate(requests, params)
    ours = engine(model).generate(requests, params)
    assert_same_but_for_ties(model, ours, theirs, params)
    for mine, other in zip(ours, theirs, strict=True):
        if mine.token_ids == other.token_ids:
            for name in ("logprobs", "sampling_logprobs", "entropies"):
                torch.testing.assert_close(
                    torch.tensor(getattr(mine, name)), torch.tensor(getattr(other, name)), atol=1e-4, rtol=1e-4
                )
            assert mine.finish_reason == other.finish_reason


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt_neox"])
@pytest.mark.few(2)
def test_behaviour_logprobs_in_bfloat16_are_near_a_plain_forward(family, record_property):
    model = make(family, torch.bfloat16)
    deltas = torch.cat(
        [plain_logprobs(model, r) - torch.tensor(r.logprobs) for r in engine(model).generate(ask(), PARAMS[0])]
    )
    record_property("mean_abs_delta", deltas.abs().mean().item())
    record_property("max_abs_delta", deltas.abs().max().item())
    assert deltas.abs().mean() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", pytest.param("qwen3", marks=pytest.mark.slow), "gemma"])
def test_few_tokens_in_bfloat16_are_others_than_generates(family, record_property):
    model, requests = make(family, torch.bfloat16), ask()
    theirs = HFBackend(model, (END,), END, 3).generate(requests, PARAMS[0])
    rates = [
        differing(tokens(engine(model, **shape).generate(requests, PARAMS[0])), tokens(theirs)) for shape in SHAPES
    ]
    record_property("differing", rates)
    assert max(rates) < 0.05


def differing(ours, theirs):
    """First differences of the texts over the tokens up to them."""
    places = [
        next((i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), None)
        for mine, other in zip(ours, theirs, strict=True)
    ]
    compared = [len(mine) if place is None else place + 1 for mine, place in zip(ours, places, strict=True)]
    return sum(place is not None for place in places) / sum(compared)


@pytest.mark.parametrize("attention", ["cpu", "torch"])
def test_behaviour_logprobs_equal_a_plain_forward_of_the_same_tokens(attention):
    model = make("llama")
    for rollout in engine(model, attention=attention).generate(ask(), SamplingParams(0.8)):
        torch.testing.assert_close(torch.tensor(rollout.logprobs), plain_logprobs(model, rollout), atol=1e-4, rtol=0)


@torch.no_grad()
def plain_logprobs(model, rollout):
    ids = torch.tensor([[*rollout.prompt_token_ids, *rollout.token_ids]])
    hidden = body(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
    params = torch.log_softmax(head_of(model).logits(hidden[len(rollout.prompt_token_ids) - 1 : -1]), -1)
    return params[range(len(rollout.token_ids)), list(rollout.token_ids)]


def adapters(model, dtype):
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(len(name)), dtype=torch.float32
            ).mul(0.1).to(torch.float64 if dtype == torch.float64 else torch.float32)  # fmt: skip
    return wrapped.eval()


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2", "gpt_neox"])
@pytest.mark.few(1)
def test_adapters_are_in_what_is_written_merged_or_not(family):
    model, requests = adapters(make(family), torch.float32), ask(6, 16)
    theirs = HFBackend(model, (END,), END, 4, merge_adapter=False).generate(requests, SamplingParams())
    with model.disable_adapter():
        without = engine(model).generate(requests, SamplingParams())
    for merge in (True, False):
        ours = engine(model, weights=LocalWeights(model, merge_adapter=merge)).generate(requests, SamplingParams())
        assert_same_but_for_ties(model.get_base_model(), ours, theirs, SamplingParams())
        assert tokens(without) != tokens(ours)


def test_a_distribution_of_its_own_holds_for_a_request_alone():
    model, requests = make("llama", torch.float64), ask(len(PARAMS))
    mixed = [dataclasses.replace(request, params=params) for request, params in zip(requests, PARAMS, strict=True)]
    together = tokens(engine(model).generate(mixed, SamplingParams(0.3)))
    alone = [tokens(engine(model).generate([r], params))[0] for r, params in zip(requests, PARAMS, strict=True)]
    assert together == alone
    assert tokens(HFBackend(model, (END,), END, 4).generate(mixed, SamplingParams(0.3))) == alone


@pytest.mark.parametrize(
    ("params", "num_drafts", "num_draws"),
    [
        (SamplingParams(), 3, 30_000),
        pytest.param(SamplingParams(), 3, 100_000, marks=pytest.mark.slow),
        pytest.param(SamplingParams(top_p=0.8), 3, 100_000, marks=pytest.mark.slow),
        pytest.param(SamplingParams(0.7), 0, 100_000, marks=pytest.mark.slow),
    ],
    ids=["own distribution, drafts", "the same, more draws", "top-p, drafts", "temperature, no drafts"],
)
def test_the_first_two_tokens_follow_the_exact_law(params, num_drafts, num_draws):
    """Chi-square of draws against enumeration on a vocabulary of 40, with drafts that are often right."""
    vocab_size, end = 40, 39
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = FAMILIES["llama"]()
        config.vocab_size, config.num_hidden_layers, config.eos_token_id, config.pad_token_id = vocab_size, 1, end, end
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config).double().eval()
    first = exact_distribution(model, [1, 2], params)
    likely = int(first[:end].argmax())
    draft = (likely, int(exact_distribution(model, [1, 2, likely], params).argmax()))
    one = engine(model, (end,), num_slots=500, max_draft_tokens=num_drafts)
    requests = [RolloutRequest((1, 2), NoiseKey(0, i, "x"), 3, (draft,)) for i in range(num_draws)]
    drawn = tokens(one.generate(requests, params))
    assert (one.stats.num_accepted_tokens > 0) == (num_drafts > 0)
    expected = {(end,): first[end].item()}
    for token in range(end):
        for second, p in enumerate(exact_distribution(model, [1, 2, token], params).tolist()):
            expected[token, second] = first[token].item() * p
    counts = dict.fromkeys(expected, 0)
    for text in drawn:
        counts[text[:2]] += 1
    assert all(expected[text[:2]] > 0 for text in drawn)
    large = [pair for pair in expected if expected[pair] * num_draws >= 5]
    observed = [counts[pair] for pair in large] + [num_draws - sum(counts[pair] for pair in large)]
    theory = [expected[pair] * num_draws for pair in large]
    theory.append(num_draws - sum(theory))
    if theory[-1] < 5:
        observed, theory = observed[:-1], theory[:-1]
    assert stats.chisquare(observed, theory, sum_check=False).pvalue > 1e-3


@torch.no_grad()
def exact_distribution(model, ids, params):
    p = torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1] / params.temperature, -1)
    if params.top_p < 1:
        ordered, order = p.sort(descending=True)
        p[order[ordered.cumsum(-1) - ordered >= params.top_p]] = 0.0
    return p / p.sum()


def test_after_an_optimizer_step_in_place_it_writes_what_a_fresh_engine_writes():
    """Rule 15: keys and values of the old weights are never used again, nor is a copy of them."""
    model, requests = make("llama", torch.float64), ask(5, 12)
    used = engine(model)
    before = tokens(used.generate(requests, SamplingParams()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.logsumexp(-1).sum().backward()
    optimizer.step()
    after = tokens(used.generate(requests, SamplingParams()))
    assert after == tokens(engine(model).generate(requests, SamplingParams())) != before
    packed = make("llama")
    used = engine(packed, weights=LocalWeights(packed, decode_copy="packed"))
    used.generate(requests, SamplingParams())
    packed.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    ours, fresh = used.generate(requests, SamplingParams()), engine(packed).generate(requests, SamplingParams())
    assert tokens(ours) == tokens(fresh)


@pytest.mark.parametrize("attention", ["cpu", "torch"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.few(1)
def test_what_a_longer_occupant_left_in_a_slot_is_never_read(family, attention):
    model, requests = make(family), ask(6, 12)
    long = [RolloutRequest(tuple(range(90)), NoiseKey(9, 9, str(i)), 20) for i in range(4)]
    clean = engine(model, attention=attention).generate(requests, SamplingParams())
    one = engine(model, attention=attention)
    one.generate(long, SamplingParams())
    for buffer in (*one._pool.cache.keys, *one._pool.cache.values):
        buffer.fill_(torch.nan)
    poisoned = one.generate(requests, SamplingParams())
    assert tokens(poisoned) == tokens(clean)
    assert all(torch.tensor(r.logprobs).isfinite().all() for r in poisoned)


def test_limits_of_one_a_terminator_first_no_draft_and_a_prompt_as_long_as_the_slot():
    model = make("llama", torch.float64)
    hf = HFBackend(model, tuple(range(0, 96, 2)), END, 4)  # half of all tokens end a text
    requests = [
        RolloutRequest(tuple(range(64)), NoiseKey(0, 0, "limit"), 1),
        RolloutRequest((5,), NoiseKey(0, 0, "one token"), 9, ((),)),
        RolloutRequest((5, 6, 7), NoiseKey(0, 0, "empty drafts"), 9, ((), ())),
        RolloutRequest(tuple(range(56)), NoiseKey(0, 0, "full"), 8, ((1,), (2, 3))),
    ]
    one = engine(model, hf.stop_token_ids)
    ours = one.generate(requests, SamplingParams())
    assert tokens(ours) == tokens(hf.generate(requests, SamplingParams()))
    assert len(ours[0].token_ids) == 1
    many = [RolloutRequest((5, 6), NoiseKey(0, i, "end first"), 9) for i in range(40)]
    ours = one.generate(many, SamplingParams())
    assert any(r.finish_reason == "stop" and len(r.token_ids) == 1 for r in ours)
    for rollout in ours:
        assert sum(token % 2 == 0 for token in rollout.token_ids) == (rollout.finish_reason == "stop")
    assert one.generate([], SamplingParams()) == []


def test_samples_of_one_prompt_share_its_prefill_and_differ():
    model = make("llama", torch.float64)
    prompt = tuple(range(30))
    requests = [RolloutRequest(prompt, NoiseKey(0, 0, "x", sample), 8) for sample in range(6)]
    one = engine(model, num_slots=3)
    ours = one.generate(requests, SamplingParams())
    assert one.stats.num_shared_tokens == 5 * 29  # all but the last token, whose hidden state is drawn from
    assert tokens(ours) == tokens(HFBackend(model, (END,), END, 6).generate(requests, SamplingParams()))
    assert len({r.token_ids for r in ours}) > 1


def test_more_requests_than_slots_wait_and_none_is_lost():
    model, requests = make("llama", torch.float64), ask(12, 3)
    one = engine(model, num_slots=2)
    seen = []
    rollouts = one.generate(requests, SamplingParams(), seen.append)
    assert [r.key for r in rollouts] == [r.key for r in requests]
    assert sum(a.num_finished for a in seen) == 12
    assert sum(a.num_tokens for a in seen) == one.stats.num_tokens == sum(map(len, tokens(rollouts)))
    assert max(a.slots_in_use for a in seen) == 2


@pytest.mark.parametrize("backend", ["engine", "hf"])
@pytest.mark.few(1)
def test_recorded_hidden_states_and_laws_are_those_of_a_plain_forward(backend):
    model, requests = make("llama", torch.float64), ask()
    one = engine(model) if backend == "engine" else HFBackend(model, (END,), END, 3)
    for rollout in one.generate(requests, SamplingParams(0.8), record=RecordOptions(hidden=True, top_k=5)):
        ids = torch.tensor([[*rollout.prompt_token_ids, *rollout.token_ids]])
        with torch.no_grad():
            hidden = body(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
            hidden = hidden[len(rollout.prompt_token_ids) - 1 : -1]
            params = torch.log_softmax(head_of(model).logits(hidden), -1)
        torch.testing.assert_close(rollout.hidden, hidden, atol=1e-9, rtol=0)
        torch.testing.assert_close(rollout.top.logprobs.double(), params.topk(5).values, atol=1e-5, rtol=0)
        assert torch.equal(rollout.top.token_ids, params.topk(5).indices)
    assert one.generate(requests[:1], SamplingParams())[0].hidden is None


@pytest.mark.parametrize("num_drafts", [1, 4])
@pytest.mark.few(1)
def test_the_telemetry_of_drafts_equals_an_offline_replay_of_the_same_tokens(num_drafts):
    model = make("llama", torch.float64)
    requests = with_an_error(ask(), tokens(engine(model).generate(ask(), SamplingParams(0.5))))
    one = engine(model, max_draft_tokens=num_drafts)
    rollouts = one.generate(requests, SamplingParams(0.5))
    drafted = accepted = forwards = 0
    for request, rollout in zip(requests, rollouts, strict=True):
        row, _ = lay_out(request.prompt_token_ids, request.draft_token_ids)
        written = 1  # the first token comes with the prompt
        while written < len(rollout.token_ids):
            row_so_far = torch.tensor([row + list(rollout.token_ids[:written])])
            drafts, count, _ = look_up(row_so_far, torch.tensor([row_so_far.shape[1]]), num_drafts)
            draft = drafts[0, : min(int(count), request.max_new_tokens - written - 1)].tolist()
            truth = rollout.token_ids[written : written + len(draft)]
            right = len(list(itertools.takewhile(lambda p: p[0] == p[1], zip(draft, truth, strict=False))))
            drafted, accepted, forwards = drafted + len(draft), accepted + right, forwards + 1
            written += min(right + 1, len(rollout.token_ids) - written)
    assert (one.stats.num_drafted_tokens, one.stats.num_accepted_tokens) == (drafted, accepted)
    assert one.stats.num_decode_rows == forwards
    assert accepted > 20


def test_state_brings_back_step_times_acceptance_and_budget(monkeypatch):
    monkeypatch.setattr("onpolicy_sdft.rollout.engine._WORTH_MEASURING", 1)  # else it takes ten times the tokens
    model, params = make("llama"), SamplingParams(0.5)
    requests = with_an_error(ask(16, 12), tokens(engine(model).generate(ask(16, 12), params)))
    one = engine(model, deterministic=False, num_slots=8)
    first = one.generate(requests, params)
    assert one.costs is not None
    other = engine(model, deterministic=False, num_slots=8)
    other.restore(one.state())
    monkeypatch.setattr("onpolicy_sdft.rollout.speculation.StepCosts.measure", None)  # nothing is measured again
    assert (other.costs, other.acceptance, other.budget) == (one.costs, one.acceptance, one.budget)
    again, resumed = one.generate(requests, params), other.generate(requests, params)
    assert again == resumed
    assert (one.stats.num_drafted_tokens, one.stats.num_decode_forwards) == (
        other.stats.num_drafted_tokens,
        other.stats.num_decode_forwards,
    )
    assert tokens(first) == tokens(again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.few(1)
def test_padding_of_ragged_forwards_is_counted_and_changes_no_bit_whatever_it_reads(dtype):
    model, found = make("llama", dtype), []
    for token in (0, 17):
        one = engine(model)
        pool = one._make_pool(ask(), NO_RECORD)
        pool.texts.tokens[pool.cache.padding_slot] = token
        found.append([(r.token_ids, r.logprobs, r.entropies) for r in one.generate(ask(), SamplingParams())])
        assert one._pool is pool
        assert one.stats.num_padding_tokens > 0
    assert found[0] == found[1]


def test_forwards_of_ragged_texts_have_few_shapes(monkeypatch):
    model, counts = make("llama"), []
    one = engine(model)
    hook = model.model.layers[0].register_forward_pre_hook(lambda layer, inputs: counts.append(inputs[0].shape[1]))
    for seed in range(6):
        one.generate(ask(limit=12, seed=seed, step=seed), SamplingParams())
    hook.remove()
    assert all(count in (round_tokens(count), round_rows(count, 8)) for count in counts)
