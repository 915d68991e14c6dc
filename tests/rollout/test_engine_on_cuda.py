"""The engine on a CUDA device: families, types, graphs, drafts, adapters, memory.

pytest -m gpu                  # where there is a device, in minutes
pytest -m gpu --device cpu     # the same tests, rehearsed without one
"""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import pytest
import torch
from toys import ask, assert_same_but_for_ties, engine, make, tokens, with_adapter

from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.types import Blend, SamplingParams

pytestmark = pytest.mark.gpu
GREEDY = SamplingParams(0.0)
PARAMS = {"greedy": GREEDY, "own": SamplingParams(), "filtered": SamplingParams(0.7, 20, 0.9)}
# Tiny models of each way of attending: grouped queries, norms of queries, soft caps, windows, sinks.
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "gpt_oss")


def on_device(model, device, **options):
    """An engine on the device as a run makes it, in steps of a fixed shape on a CPU as well."""
    model.to(device)
    return engine(model, weights=LocalWeights.on_device(model), grid=True, **options)


def assert_same(model, ours, theirs, params=GREEDY):
    """Compare texts; near ties are looked up on the CPU, where a plain forward is at hand."""
    assert_same_but_for_ties(copy.deepcopy(model).cpu(), ours, theirs, params)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_what_generate_writes(family, device):
    model = make(family).to(device)
    ours = on_device(model, device).generate(ask(6), GREEDY)
    assert_same(model, ours, HFBackend(model, (95,), 95, 6, True).generate(ask(6), GREEDY))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bf16", "fp16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_every_type_gives_the_log_probabilities_of_a_plain_forward_up_to_rounding(family, dtype, device):
    model = make(family, dtype).to(device)
    one = on_device(model, device)
    rollouts = one.generate(ask(6), SamplingParams())
    assert tokens(one.generate(ask(6), SamplingParams())) == tokens(rollouts)
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_token_ids + rollout.token_ids], device=device)
        first = len(rollout.prompt_token_ids)
        with torch.no_grad():
            params = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, first - 1 : -1].float(), -1)
        own = params.gather(1, ids[0, first:, None])[:, 0].cpu()
        apart = (own - torch.tensor(rollout.logprobs)).abs()
        # bfloat16 keeps 8 bits, float16 keeps 11; logits of these models go up to about 10.
        assert apart.mean() < {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.02}[dtype]


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("max_drafts", [0, 3], ids=["plain", "drafts"])
def test_graphs_change_no_token(params, max_drafts, device):
    model = make("qwen2")
    with_graphs = on_device(model, device, max_draft_tokens=max_drafts)
    ours = with_graphs.generate(ask(9), params)
    without = on_device(model, device, max_draft_tokens=max_drafts, graphs=False).generate(ask(9), params)
    assert tokens(ours) == tokens(without)
    assert with_graphs.steps.use_graphs == (device.type == "cuda"), "steps were not captured"


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_drafts_change_no_token(params, device):
    model = make("llama")
    one = on_device(model, device, max_draft_tokens=4)
    drafted, plain = one.generate(ask(9), params), on_device(model, device, max_draft_tokens=0).generate(ask(9), params)
    assert one.stats.num_drafted_tokens > 0
    assert_same(model, drafted, plain, params)


def test_adapters_that_change_in_place_are_seen_by_steps_that_are_kept(device):
    model = with_adapter(make("llama")).to(device)
    one = on_device(model, device)
    texts = []
    for _ in range(2):
        ours = one.generate(ask(6), GREEDY)
        assert_same(model, ours, HFBackend(model, (95,), 95, 6, True).generate(ask(6), GREEDY))
        texts.append(tokens(ours))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.mul_(-2)
    assert texts[0] != texts[1]


def test_memory_is_given_back_with_the_engine(device):
    model = make("llama").to(device)
    left = []
    for _ in range(3):  # the first also allocates what libraries keep
        one = on_device(model, device, num_slots=9)
        one.generate(ask(9), SamplingParams())
        del one
        gc.collect()
        left.append(torch.cuda.memory_allocated() if device.type == "cuda" else 0)
    assert left[1] == left[2]


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("budget", [None, 0.2], ids=["weight", "budget"])
def test_blended_texts_are_captured_and_are_those_of_generate(params, budget, device):
    model = make("llama").to(device)
    requests = [replace(one, blend=Blend((5, *one.prompt_token_ids[-4:]), 0.4, budget)) for one in ask(6)] + ask(8)[6:]
    one = on_device(model, device, num_slots=7)
    ours = one.generate(requests, params)
    assert one.steps.use_graphs == (device.type == "cuda"), "steps were not captured"
    theirs = HFBackend(model, (95,), 95, 8, True).generate(requests, params)
    same = [mine.token_ids == other.token_ids for mine, other in zip(ours, theirs, strict=True)]
    assert sum(same) >= len(same) - 1, "more than near ties differ"
    for mine, other, is_same in zip(ours, theirs, same, strict=True):
        if is_same:
            assert mine.bare_logprobs == pytest.approx(other.bare_logprobs, abs=1e-3)
