"""A vLLM server that cannot be used is refused with the way out, and none is waited for for ever. Without vLLM."""

from __future__ import annotations

import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from vllm_servers import GREEDY, PROMPTS, TERMINATOR, VOCABULARY, FakeServer, ask, by_generate, disturb, tokens

from onpolicy_sdft.build.bundle import require_writer
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.config.schema import ModelConfig, RolloutConfig, RunConfig
from onpolicy_sdft.errors import ConfigError, ModelError, TrainingError
from onpolicy_sdft.fitting.export import export
from onpolicy_sdft.fitting.fit import fit
from onpolicy_sdft.rollout import vllm_client
from onpolicy_sdft.rollout import vllm_server as server_module
from onpolicy_sdft.rollout.vllm_server import ServerOptions, VLLMServerBackend, save_weights
from onpolicy_sdft.rollout.vllm_trial import server_backend
from onpolicy_sdft.runs.files import read_jsonl
from onpolicy_sdft.types import NoiseKey, Ranks, RolloutRequest, SamplingParams
from tests.conftest import make_model
from tests.tiny import write_run

WRITE = "/inference/v1/generate"


@pytest.fixture
def fake():
    found = FakeServer(make_model(seed=5))
    yield found
    found.close()


@pytest.fixture
def model():
    return make_model()


def backend_of(fake, model, **options):
    return VLLMServerBackend(model, (TERMINATOR,), ServerOptions(fake.url, **options), VOCABULARY)


def test_what_is_written_is_the_models_with_weights_that_move(fake, model, tmp_path, logged):
    options = ServerOptions(fake.url, weights=str(tmp_path / "both" / "see"))
    backend = server_backend(model, (TERMINATOR,), options, VOCABULARY)
    assert "Lost beside the engine" in "".join(logged)
    for _ in range(2):
        assert tokens(backend.generate(ask(), GREEDY)) == tokens(by_generate(model, ask()))
        assert backend.stats.mismatch_max < 1e-4
        disturb(model)
    assert len(set(fake.handed)) == 4
    assert list((tmp_path / "both" / "see").iterdir()) == []  # nothing of them is left


def test_adapters_are_merged_before_they_are_handed_over(fake, model):
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    disturb(adapted)
    backend = backend_of(fake, adapted)
    assert tokens(backend.generate(ask(), GREEDY)) == tokens(by_generate(adapted, ask()))
    assert backend.stats.mismatch_max < 1e-4


def test_requests_draw_by_their_keys_whatever_their_order_is(fake, model):
    backend, asked = backend_of(fake, model), ask(PROMPTS * 3)
    first = tokens(backend.generate(asked, SamplingParams()))
    assert tokens(backend.generate(asked[::-1], SamplingParams()))[::-1] == first
    same = [RolloutRequest((1, 2), NoiseKey(0, 0, "same", sample), 8) for sample in range(6)]
    assert len(set(tokens(backend.generate(same, SamplingParams())))) == 6
    assert all(0 <= params["seed"] < 2**63 for params in fake.asked)
    assert backend.generate([], SamplingParams()) == []


def test_large_weights_go_into_several_files(model, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "_SHARD_BYTES", 10_000)
    save_weights(model, tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    found = {name: each for path in files for name, each in load_file(path).items()}
    assert {name: each.tolist() for name, each in model.state_dict().items()} == {
        n: t.tolist() for n, t in found.items()
    }


def test_a_run_goes_through_a_server(fake, tmp_path, tokenizer):
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = {"rollout.backend": "vllm_server", "rollout.server_url": fake.url, "rollout.max_new_tokens": 6}
    options |= {"rollout.max_mismatch": 0.001, "eval.kl_prompts": 0, "train.max_steps": 2}
    config = write_run(tmp_path, tmp_path / "model", **options)
    fit(load_config(config, **{"train.output_dir": str(tmp_path / "run")}))
    values = [line["values"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert len(values) == 2
    assert max(each["rollout/mismatch_max"] for each in values) < 1e-3
    fake.close()  # whoever only reads the model needs no server
    assert export(tmp_path / "run", tmp_path / "export", merged=True, push_to_hub=None) == tmp_path / "export"


def test_a_run_without_a_server_is_refused_with_the_command_to_start_one():
    rollout = RolloutConfig(backend="vllm_server", server_url="http://127.0.0.1:9")
    with pytest.raises(TrainingError, match="VLLM_SERVER_DEV_MODE=1 vllm serve /nowhere.*--port 9 "):
        require_writer(RunConfig(model=ModelConfig(name="/nowhere"), rollout=rollout))


def test_more_ranks_than_one_are_refused():
    config = RunConfig(rollout=RolloutConfig(backend="vllm_server"))
    with pytest.raises(ConfigError, match="has 2 ranks. Fix: --rollout.backend vllm "):
        require_writer(config, TwoRanks())


class TwoRanks(Ranks):
    num_ranks = 2


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/server_info", (404, {"detail": "Not Found"}), "VLLM_SERVER_DEV_MODE=1 was not set"),
        ("/server_info", (500, {"error": "no"}), "answers 500"),
        ("/server_info", (200, {"other": 1}), "cannot be read"),
        ("/server_info", (200, {"vllm_config": {"model_config": {}}}), "lacks 'scheduler_config'"),
    ],
)  # fmt: skip
def test_a_server_that_was_started_otherwise_is_refused(fake, model, path, answer, words):
    fake.instead[path] = answer
    with pytest.raises(ModelError, match="Fix: start it with VLLM_SERVER_DEV_MODE=1 vllm serve") as refused:
        backend_of(fake, model)
    assert words in str(refused.value)


def test_a_server_with_log_probabilities_of_another_kind_is_refused(fake, model):
    fake.info["model_config"]["logprobs_mode"] = "raw_logprobs"
    with pytest.raises(ModelError, match="started with --logprobs-mode raw_logprobs"):
        backend_of(fake, model)


def test_log_probabilities_of_another_kind_are_found_by_their_values(fake, model):
    def raw(fake, body):
        answer = fake.write(body)
        for step in answer["choices"][0]["logprobs"]["content"]:
            step["logprob"] -= 1.0 if body["sampling_params"]["top_k"] else 0.0
        return 200, answer

    fake.instead[WRITE] = raw
    with pytest.raises(ModelError, match="it serves another model, or another run"):
        server_backend(model, (TERMINATOR,), ServerOptions(fake.url), VOCABULARY)


def test_a_server_that_keeps_its_own_weights_is_refused(fake, model):
    fake.instead["/collective_rpc"] = (200, {"results": [None]})
    with pytest.raises(ModelError, match="it serves another model, or another run"):
        server_backend(model, (TERMINATOR,), ServerOptions(fake.url), VOCABULARY)


@pytest.mark.parametrize(
    ("path", "answer", "kind", "words"),
    [
        (WRITE, (403, {"error": "Scale-out endpoints are disabled"}), ModelError, "does not take token ids"),
        (WRITE, (500, {"error": "died"}), TrainingError, "answers 500"),
        (WRITE, (200, b"<html>"), TrainingError, "something else than JSON"),
        (WRITE, (200, {"choices": []}), TrainingError, "an answer cannot be read"),
        (WRITE, (200, {"choices": [{"token_ids": [], "finish_reason": "abort", "logprobs": {"content": []}}]}),
         TrainingError, "ended with 'abort' makes no text"),
        ("/collective_rpc", (404, {}), ModelError, "does not take weights"),
        ("/collective_rpc", (500, {"error": "Repo id must"}), TrainingError, "--rollout.server_weights with a folder"),
        ("/reset_prefix_cache", (200, {"success": False}), TrainingError, "still writes for somebody else"),
    ],
)  # fmt: skip
def test_a_call_that_fails_says_which_server_and_the_way_out(fake, model, monkeypatch, path, answer, kind, words):
    monkeypatch.setattr(server_module, "_RESET_SECONDS", 0.3)
    backend = backend_of(fake, model)
    fake.instead[path] = answer
    with pytest.raises(kind, match="Fix: ") as refused:
        backend.generate(ask(), GREEDY)
    assert words in str(refused.value)
    assert fake.url in str(refused.value)


def test_an_answer_that_does_not_come_ends_the_call(fake, model):
    fake.instead[WRITE] = lambda fake, body: (fake.stopped.wait(20), (500, {}))[1]
    backend = backend_of(fake, model, timeout=0.5)
    started = time.monotonic()
    with pytest.raises(TrainingError, match="not answered within 0.5 s"):
        backend.generate(ask(), GREEDY)
    assert time.monotonic() - started < 10


def test_a_server_that_stands_still_is_found_before_its_answer_is_due(fake, model, monkeypatch):
    monkeypatch.setattr(vllm_client, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(vllm_client, "_CONNECT_SECONDS", 0.5)
    backend = backend_of(fake, model)
    for path in ("/health", WRITE):
        fake.instead[path] = lambda fake, body: (fake.stopped.wait(20), (500, {}))[1]
    started = time.monotonic()
    with pytest.raises(TrainingError, match="/health was not answered"):
        backend.generate(ask(), GREEDY)
    assert time.monotonic() - started < 10


def test_a_server_that_has_ended_is_said_so(fake, model):
    backend = backend_of(fake, model)
    fake.close()
    with pytest.raises(TrainingError, match="ConnectionRefusedError.*start it again"):
        backend.generate(ask(), GREEDY)


def test_a_text_that_is_too_long_for_the_server_is_refused(fake, model):
    with pytest.raises(ConfigError, match="A text of 1030 positions.*--max-model-len"):
        backend_of(fake, model).generate([RolloutRequest((1,) * 1018, NoiseKey(0, 0, "long"), 12)], GREEDY)


def test_a_bound_on_the_mismatch_stops_the_run(fake, model):
    with pytest.raises(TrainingError, match="rollout.max_mismatch=1e-12. Fix: let no other run use the server"):
        backend_of(fake, model, max_mismatch=1e-12).generate(ask(), SamplingParams())


def test_a_folder_that_cannot_be_written_is_refused(fake, model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="rollout.server_weights=.*Fix: a folder"):
        backend_of(fake, model, weights=str(tmp_path / "file"))
    backend = backend_of(fake, model, weights=str(tmp_path / "folder"))
    (tmp_path / "folder").rmdir()
    with pytest.raises(TrainingError, match="cannot be written into.*Fix: --rollout.server_weights"):
        backend.generate(ask(), GREEDY)
