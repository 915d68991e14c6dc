from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from scipy import stats

from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.rollout.sampling import SamplingParams, cut_at_terminator
from onpolicy_sdft.types import NoiseKey, RolloutRequest

TERMINATOR = 257


def ask(prompts, *, limit=12, step=0):
    return [RolloutRequest(tuple(p), NoiseKey(0, step, f"e{i}"), limit) for i, p in enumerate(prompts)]


PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]


def test_greedy_equals_plain_greedy_decoding_by_forwards(tiny_model):
    model = tiny_model(torch.float64).eval()
    backend = HFBackend(model, (TERMINATOR,), TERMINATOR, 2)
    for request, rollout in zip(
        ask(PROMPTS), backend.generate(ask(PROMPTS), SamplingParams(temperature=0)), strict=True
    ):
        ids = list(request.prompt_token_ids)
        while len(ids) < len(request.prompt_token_ids) + 12 and ids[-1] != TERMINATOR:
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert list(rollout.token_ids) == ids[len(request.prompt_token_ids) :]


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(0.8, 20, 0.9), SamplingParams(1.3, min_p=0.05)])
def test_tokens_do_not_depend_on_batch_or_order(tiny_model, params):
    model = tiny_model(torch.float64)
    alone = HFBackend(model, (TERMINATOR,), TERMINATOR, 1).generate(ask(PROMPTS), params)
    for batch_size in (2, 5):
        together = HFBackend(model, (TERMINATOR,), TERMINATOR, batch_size).generate(ask(PROMPTS), params)
        assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    backwards = HFBackend(model, (TERMINATOR,), TERMINATOR, 3).generate(ask(PROMPTS)[::-1], params)
    assert [r.token_ids for r in backwards[::-1]] == [r.token_ids for r in alone]


def test_memory_that_runs_out_halves_the_batch_and_changes_no_token(tiny_model, monkeypatch, logged):
    model = tiny_model(torch.float64)
    expected = HFBackend(model, (TERMINATOR,), TERMINATOR, 1).generate(ask(PROMPTS), SamplingParams())
    backend, forward, told = HFBackend(model, (TERMINATOR,), TERMINATOR, 5), model.forward, []

    def runs_out(*args, **options):
        if len(told) > 3 and len(options["input_ids"]) > most:
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **options)

    monkeypatch.setattr(model, "forward", runs_out)
    most = 1
    found = backend.generate(ask(PROMPTS), SamplingParams(), told.append)
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]
    assert (backend.batch_size, backend.stats.num_out_of_memory) == (1, 2)
    assert sum(each.num_finished for each in told) == len(PROMPTS)
    assert "out of memory with 5 completions at once, going on with 2" in logged[0]
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        backend.generate(ask(PROMPTS), SamplingParams())


def test_another_step_draws_other_tokens(tiny_model):
    backend = HFBackend(tiny_model(), (TERMINATOR,), TERMINATOR, 5)
    first = backend.generate(ask(PROMPTS), SamplingParams())
    second = backend.generate(ask(PROMPTS, step=1), SamplingParams())
    assert [r.token_ids for r in first] != [r.token_ids for r in second]


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_p=0.8),
        *(
            pytest.param(SamplingParams(**one), marks=pytest.mark.slow)
            for one in ({"temperature": 0.7}, {"top_p": 0.8}, {"top_k": 5})
        ),
    ],
)
def test_the_first_two_tokens_follow_the_exact_law(tiny_model, params):
    """Chi-square against enumeration on a small vocabulary."""
    vocab_size, num_draws = 12, 6000
    model = tiny_model(torch.float64, vocab_size=vocab_size).eval()
    backend = HFBackend(model, (vocab_size - 1,), 0, num_draws)
    requests = [RolloutRequest((1, 2), NoiseKey(0, i, "x"), 2) for i in range(num_draws)]
    drawn = [r.token_ids for r in backend.generate(requests, params)]
    expected = {}
    for first in range(vocab_size):
        p_first = processed(model, [1, 2], params)[first].item()
        if first == vocab_size - 1:
            expected[first,] = p_first
            continue
        for second, p in enumerate(processed(model, [1, 2, first], params).tolist()):
            expected[first, second] = p_first * p
    counts = dict.fromkeys(expected, 0)
    for pair in drawn:
        counts[pair] += 1
    assert all(expected[pair] > 0 for pair in drawn)
    large = [pair for pair in expected if expected[pair] * num_draws >= 5]
    rest = num_draws - sum(counts[pair] for pair in large)
    observed = [*(counts[pair] for pair in large), rest]
    theory = [*(expected[pair] * num_draws for pair in large)]
    theory.append(num_draws - sum(theory))
    if theory[-1] < 1e-6:
        assert rest == 0
        observed, theory = observed[:-1], theory[:-1]
    assert stats.chisquare(observed, theory, sum_check=False).pvalue > 1e-3


def processed(model, ids, params):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
    logits = logits / params.temperature
    if params.top_k:
        logits[logits < logits.topk(params.top_k).values[-1]] = -torch.inf
    if params.top_p < 1:
        p, order = logits.softmax(-1).sort(descending=True)
        keep = p.cumsum(-1) - p < params.top_p
        logits[order[~keep]] = -torch.inf
    return logits.softmax(-1)


def test_a_checkpoints_own_sampling_defaults_are_not_used(tiny_model):
    plain, opinionated = tiny_model(), tiny_model()
    opinionated.generation_config.top_k = 1
    opinionated.generation_config.temperature = 0.1
    opinionated.generation_config.repetition_penalty = 5.0
    texts = []
    for model in (plain, opinionated):
        backend = HFBackend(model, (TERMINATOR,), TERMINATOR, 5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            texts.append([r.token_ids for r in backend.generate(ask(PROMPTS), SamplingParams())])
    assert texts[0] == texts[1]


def test_progress_counts_every_completion_and_token_once(tiny_model):
    backend = HFBackend(tiny_model(), (TERMINATOR, 10, 20, 30), TERMINATOR, 2)
    seen = [0, 0]

    def count(advance):
        seen[0] += advance.num_finished
        seen[1] += advance.num_tokens

    rollouts = backend.generate(ask(PROMPTS, limit=30), SamplingParams(), count)
    assert seen == [len(PROMPTS), sum(len(r.token_ids) for r in rollouts)]


def test_nothing_asked_gives_nothing(tiny_model):
    assert HFBackend(tiny_model(), (TERMINATOR,), TERMINATOR, 2).generate([], SamplingParams()) == []


@pytest.mark.parametrize(
    ("ids", "limit", "expected"),
    [
        ([5, 9, 7], 3, (2, True)),
        ([9], 3, (1, True)),
        ([5, 6, 9], 2, (2, False)),
        ([5], 4, (1, False)),
        ([], 4, (0, False)),
    ],
)
def test_a_text_is_cut_behind_its_first_terminator_within_the_limit(ids, limit, expected):
    assert cut_at_terminator(ids, frozenset({9}), limit) == expected


def test_all_combinations_of_keys_in_a_batch_are_distinct(tiny_model):
    backend = HFBackend(tiny_model(), (TERMINATOR,), TERMINATOR, 8)
    keys = [NoiseKey(0, 0, "same", s, a) for s, a in itertools.product(range(2), range(3))]
    rollouts = backend.generate([RolloutRequest((1, 2), key, 16) for key in keys], SamplingParams())
    assert len({r.token_ids for r in rollouts}) == len(keys)
