"""What a GPU does in one kernel is what the model's own operations give, and whole rollouts are what a CPU writes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Phi3Config
from transformers.models.llama import modeling_llama

from onpolicy_sdft.rollout.gpu import passes
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.types import Record, SamplingLaw

sys.path.insert(0, str(Path(__file__).parents[1]))
from toys import FAMILIES, SIZES, ask, engine, logits, make, tokens, with_adapter

#: Layers that are fused whole; of the others some operations are.
WHOLE = {"llama", "qwen2", "qwen3", "mistral", "phi3"}


def model_of(family):
    if family != "phi3":
        return make(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(Phi3Config(**SIZES, sliding_window=8)).eval()


def on_a_gpu(model, decode_copy="auto", merge=True):
    return LocalWeights(model, merge, decode_copy, keep=True, triton=True)


@pytest.mark.parametrize("size", [1, 24, 576, 1000])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_is_the_norm(offset, size):
    x, weight = torch.randn(2, 3, size) * 3, torch.randn(size)
    own = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * (offset + weight)
    torch.testing.assert_close(passes.rms_norm(x, weight, offset, 1e-5), own)


@pytest.mark.parametrize(
    ("name", "function"),
    [("silu", F.silu), ("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"))],
)
def test_a_gated_unit_is_the_activation_times_the_other(name, function):
    both = torch.randn(5, 2 * 1500) * 4
    both[0, :4] = torch.tensor([-1e4, -90.0, 90.0, 1e4])
    gate, up = both[:, :1500], both[:, 1500:]
    torch.testing.assert_close(passes.gated(gate, up, name), function(gate) * up, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [8, 16, 80, 128])
def test_positions_are_rotated_as_by_the_model(size):
    x = torch.randn(1, 7, 6, size).transpose(1, 2)
    cos, sin = torch.randn(1, 7, size), torch.randn(1, 7, size)
    own, _ = modeling_llama.apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(passes.rotate(x, cos, sin), own)


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("copy", ["none", "packed", "auto"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt_neox"])
def test_what_is_replaced_computes_the_models_own_logits_and_is_put_back(family, copy, adapted):
    plain = model_of(family)
    model = with_adapter(plain) if adapted else plain
    own, view = logits(model), on_a_gpu(model, copy)
    for _ in range(2):
        with view.open():
            torch.testing.assert_close(logits(model), own, atol=2e-4, rtol=1e-4)
            joined = copy != "none" or adapted or family == "phi3"
            assert view.fused.startswith("3 layers") == (family in WHOLE and joined), view.fused
        assert torch.equal(logits(model), own)
        assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("family", [*FAMILIES, "phi3", "llama, adapted"])
def test_a_rollout_is_the_one_of_a_cpu(family):
    model = with_adapter(make("llama")) if family == "llama, adapted" else model_of(family)
    requests, record = ask(3, limit=4), Record(hidden=True)
    expected = engine(model, num_slots=2).generate(requests, SamplingLaw(), record=record)
    view = on_a_gpu(model)
    one = engine(model, num_slots=2, weights=view, attention="triton", grid=True, max_draft_tokens=2)
    found = one.generate(requests, SamplingLaw(), record=record)
    assert tokens(found) == tokens(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.hidden, theirs.hidden, atol=1e-3, rtol=1e-3)


def test_copies_stay_where_they_are_and_follow_the_weights():
    model = with_adapter(make("llama"))
    view = on_a_gpu(model)
    with view.open():
        first = view.fingerprint()
    for parameter in model.parameters():
        parameter.data.mul_(1.01)
    own = logits(model)
    with view.open():
        assert view.fingerprint() == first
        torch.testing.assert_close(logits(model), own, atol=2e-4, rtol=1e-4)
    view.release()
    with view.open():
        torch.testing.assert_close(logits(model), own, atol=2e-4, rtol=1e-4)


def watched(layer, part):
    module = layer.get_submodule(part) if part else layer
    module.register_forward_hook(lambda module, given, out: out)


@pytest.mark.parametrize("part", ["", "self_attn", "self_attn.q_proj", "mlp.act_fn", "input_layernorm"])
def test_a_layer_that_somebody_looks_into_is_left_alone(part):
    model = make("llama")
    watched(model.model.layers[1], part)
    view = on_a_gpu(model)
    with view.open():
        assert view.fused.startswith("2 layers")


def test_a_layer_of_another_formula_is_left_alone():
    model = make("llama")
    model.model.layers[0].mlp.act_fn = torch.nn.ReLU()
    model.model.layers[1].self_attn.scaling *= 2  # this one is read off the layer
    own, view = logits(model), on_a_gpu(model)
    with view.open():
        assert view.fused.startswith("2 layers")
        torch.testing.assert_close(logits(model), own, atol=2e-4, rtol=1e-4)
    model.model.layers[2].mlp.forward = lambda x: x
    with view.open():
        assert view.fused.startswith("1 layers")
