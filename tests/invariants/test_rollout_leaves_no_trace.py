"""Rules 3, 4, 8 and 9: log-probs, stop_token_ids, no trace, no dropout."""

from __future__ import annotations

import functools
import hashlib

import pytest
import torch

from onpolicy_sdft.config.schema import ScreeningConfig
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.types import NoiseKey, RolloutRequest, SamplingParams


@pytest.fixture(params=["engine", "hf"])
def make_bench(request, make_bench):
    """Every promise of this file is made by both backends."""
    return functools.partial(make_bench, rollouts=request.param)


def sha256(model) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def requests(bench, limit=24):
    return [RolloutRequest(v.teacher_ids, NoiseKey(0, 3, v.demonstration.example_id), limit) for v in bench.pairs]


def stir(bench):
    """Give adapters weights that matter, and every module a flag of its own."""
    for name, parameter in bench.model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    for index, module in enumerate(bench.model.modules()):
        module.training = index % 2 == 0
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True


def snapshot(bench):
    return (
        sha256(bench.model),
        [module.training for module in bench.model.modules()],
        [getattr(module, "gradient_checkpointing", None) for module in bench.model.modules()],
        [len(module._forward_pre_hooks) for module in bench.model.modules()],
        torch.get_rng_state().tolist(),
        [p.data_ptr() for p in bench.model.parameters()],
        [sorted(module.__dict__.keys() & {"forward"}) for module in bench.model.modules()],
        inner_model(bench.model).config._attn_implementation,
        bench.rollout_backend.model.generation_config.to_dict(),
    )


@pytest.mark.parametrize("lora", [None, {"lora_dropout": 0.5}], ids=["full", "lora"])
def test_a_rollout_leaves_flags_checkpointing_random_state_and_weights_as_they_were(make_bench, lora):
    bench = make_bench(lora=lora)
    stir(bench)
    before = snapshot(bench)
    bench.rollout_backend.generate(requests(bench), SamplingParams(temperature=0.9, top_p=0.95))
    assert snapshot(bench) == before


@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
def test_an_exception_in_the_middle_of_a_rollout_leaves_no_trace_either(make_bench, lora):
    bench = make_bench(lora=lora)
    stir(bench)
    before = snapshot(bench)

    def explode(advance):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        bench.rollout_backend.generate(requests(bench), SamplingParams(), explode)
    assert snapshot(bench) == before


@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
@pytest.mark.few(2)
def test_autocast_around_a_rollout_changes_nothing_in_it(make_bench, lora):
    bench = make_bench(lora=lora)
    stir(bench)
    expected = bench.rollout_backend.generate(requests(bench), SamplingParams())
    with torch.autocast("cpu", torch.bfloat16):
        assert bench.rollout_backend.generate(requests(bench), SamplingParams()) == expected
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.few(2)
def test_behaviour_logprobs_equal_a_plain_forward_of_the_same_tokens(make_bench, merge):
    bench = make_bench(lora={}, merge_adapter=merge)
    stir(bench)
    params = SamplingParams(temperature=0.7)
    rollouts = bench.rollout_backend.generate(requests(bench), params)
    bench.model.eval()
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt_token_ids, *rollout.token_ids]])
        with torch.no_grad():
            logits = bench.model(input_ids=ids).logits[0, len(rollout.prompt_token_ids) - 1 : -1]
        for temperature, recorded in ((1.0, rollout.logprobs), (0.7, rollout.sampling_logprobs)):
            law_T = torch.log_softmax(logits / temperature, -1)
            expected = law_T[range(len(rollout.token_ids)), list(rollout.token_ids)]
            torch.testing.assert_close(torch.tensor(recorded), expected, atol=1e-4, rtol=0)
        raw = torch.log_softmax(logits, -1)
        entropy = -(raw.exp() * raw).sum(-1)
        torch.testing.assert_close(torch.tensor(rollout.entropies), entropy, atol=1e-4, rtol=0)


def test_merged_and_unmerged_adapters_write_the_same_tokens(make_bench):
    texts = []
    for merge in (True, False):
        bench = make_bench(lora={}, merge_adapter=merge)
        stir(bench)
        texts.append([r.token_ids for r in bench.rollout_backend.generate(requests(bench), SamplingParams())])
    assert texts[0] == texts[1]


def test_dropout_is_off_in_rollouts(make_bench):
    bench = make_bench(lora={"lora_dropout": 0.5}, merge_adapter=False)
    stir(bench)
    bench.model.train()
    first = bench.rollout_backend.generate(requests(bench), SamplingParams())
    assert first == bench.rollout_backend.generate(requests(bench), SamplingParams())


def test_every_terminator_ends_a_rollout_and_exactly_one_is_kept(make_bench):
    bench = make_bench()
    both = (257, 110, 32)
    bench.rollout_backend.stop_token_ids = both
    for rollout in bench.rollout_backend.generate(requests(bench, 60), SamplingParams()):
        inside = [token for token in rollout.token_ids if token in both]
        assert len(inside) == (rollout.finish_reason == "stop")
        assert (rollout.token_ids[-1] in both) == (rollout.finish_reason == "stop")
        assert len(rollout.token_ids) == len(rollout.logprobs) == len(rollout.entropies)


def test_a_rollout_that_hit_the_limit_is_truncated_and_falls_back_by_default(make_bench):
    bench = make_bench(screening=ScreeningConfig(), max_new_tokens=2)
    metrics = bench.step()
    for target in metrics.targets:
        if target.rollout.finish_reason == "length":
            assert len(target.rollout.token_ids) == 2
            assert (target.verdict, target.reason) == ("fallback", "truncated")
            assert target.token_ids == target.pair.response_ids
    assert metrics.values["screen/reason/truncated_rate"] > 0


def test_limits_are_each_requests_own(make_bench):
    bench = make_bench()
    asked = [RolloutRequest(v.teacher_ids, NoiseKey(0, 0, str(i)), i + 1) for i, v in enumerate(bench.pairs)]
    alone = [bench.rollout_backend.generate([request], SamplingParams())[0] for request in asked]
    together = bench.rollout_backend.generate(asked, SamplingParams())
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert all(len(r.token_ids) <= i + 1 for i, r in enumerate(together))
