"""What a GPU does in one kernel is what the model's own operations give, and whole rollouts are what a CPU writes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes
from transformers import (
    AutoModelForCausalLM,
    Ernie4_5Config,
    GlmConfig,
    GraniteConfig,
    LlamaConfig,
    Phi3Config,
    SmolLM3Config,
)
from transformers.models.llama import modeling_llama
from triton.runtime import interpreter

from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.rollout.attention import TorchKernels, slot_attention_on
from onpolicy_sdft.rollout.backend import NO_RECORD, ignore_progress
from onpolicy_sdft.rollout.gpu import layers, passes
from onpolicy_sdft.rollout.grid import GridCall, GridStep, OnTheDevice
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.types import Blend, RecordOptions, SamplingParams

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


@pytest.mark.parametrize(
    ("copy", "adapted"),
    [
        ("packed", False), ("none", True), ("auto", True),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("none", False), ("auto", False), ("packed", True))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt_neox"])
@pytest.mark.few(1)
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


#: Those whose layers are least alike; the others are slow.
UNLIKE = {"qwen3", "gemma2", "gpt_oss", "phi3", "llama, adapted"}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in UNLIKE else pytest.mark.slow)
        for name in [*FAMILIES, "phi3", "llama, adapted"]
    ],
)
@pytest.mark.few(1)
def test_a_rollout_is_the_one_of_a_cpu(family):
    model = with_adapter(make("llama")) if family == "llama, adapted" else model_of(family)
    requests, record = ask(3, limit=4), RecordOptions(hidden=True)
    expected = engine(model, num_slots=2).generate(requests, SamplingParams(), record=record)
    view = on_a_gpu(model)
    one = engine(model, num_slots=2, weights=view, attention="triton", grid=True, max_draft_tokens=2)
    found = one.generate(requests, SamplingParams(), record=record)
    assert tokens(found) == tokens(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.hidden, theirs.hidden, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_blended_rollout_is_the_one_of_a_cpu():
    model = make("llama")
    requests = [replace(request, blend=Blend((5, *request.prompt_token_ids[-4:]), 0.4)) for request in ask(2, limit=3)]
    requests += ask(3, limit=3)[2:]
    expected = engine(model, num_slots=3).generate(requests, SamplingParams())
    view = on_a_gpu(model)
    one = engine(model, num_slots=3, weights=view, attention="triton", grid=True, max_draft_tokens=2)
    found = one.generate(requests, SamplingParams())
    assert tokens(found) == tokens(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("logprobs", "bare_logprobs", "sampling_logprobs", "entropies"):
            assert getattr(mine, name) == pytest.approx(getattr(theirs, name), abs=1e-3)


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
@pytest.mark.few(1)
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


class Counting(OnTheDevice):
    """Count operations that are kernels on a GPU, and refuse what the host would have to wait for."""

    NO_KERNEL = ("empty", "empty_like", "new_empty", "_unsafe_view", "detach")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_view = any(each.alias_info and not each.alias_info.is_write for each in func._schema.returns)
        self.count += not is_view and func.overloadpacket.__name__ not in self.NO_KERNEL
        return super().__torch_dispatch__(func, types, args, kwargs)


def count_kernels(family, num_layers, params, monkeypatch):
    config = FAMILIES[family]()
    config.num_hidden_layers, config.layer_types = num_layers, ["full_attention"] * num_layers
    model = AutoModelForCausalLM.from_config(config).eval()
    one = engine(model, num_slots=2, weights=on_a_gpu(model), attention="triton", grid=True, max_draft_tokens=0)
    requests, counting = ask(2, limit=4), Counting()
    launch = interpreter.GridExecutor.__call__

    def counted(self, *args, **options):
        counting.count += 1
        with _disable_current_modes():  # the interpreter computes on the host
            return launch(self, *args, **options)

    with no_trace(model), one.weights.open(), slot_attention_on(model), monkeypatch.context() as patch:
        pool = one._make_pool(requests, NO_RECORD)
        call = GridCall(one, model, pool, requests, params, ignore_progress, NO_RECORD)
        call._admit()
        step = GridStep(call, 2, 0)
        step.load(call.scheduler.live)
        patch.setattr(interpreter.GridExecutor, "__call__", counted)
        with counting:
            step.run()
    return counting.count


@pytest.mark.parametrize(("family", "params"), [("llama", SamplingParams()), ("qwen3", SamplingParams(0.7, 20))])
@pytest.mark.slow
def test_a_step_of_thirty_layers_is_350_kernels_and_reads_nothing_on_the_host(family, params, monkeypatch):
    one, two = (count_kernels(family, num_layers, params, monkeypatch) for num_layers in (1, 2))
    assert one + 29 * (two - one) <= 350


#: Layers that look like the usual ones and are not.
UNUSUAL = {
    "no positions": lambda sizes: SmolLM3Config(**sizes, no_rope_layers=[0] * 3),
    "interleaved positions": lambda sizes: Ernie4_5Config(**sizes),
    "interleaved and partial": lambda sizes: GlmConfig(**sizes, head_dim=16),
    "a scaled residual": lambda sizes: GraniteConfig(**sizes, residual_multiplier=0.9),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*UNUSUAL, "usual"])
@pytest.mark.few(2)
def test_a_layer_of_another_formula_is_found_out_in_every_type(name, dtype, monkeypatch):
    # The interpreter has no products in half precision: the plain sum stands in for the kernel.
    monkeypatch.setattr(layers, "TritonKernels", lambda length, device: TorchKernels(length))
    sizes = SIZES | {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.02}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UNUSUAL.get(name, lambda sizes: LlamaConfig(**sizes))(sizes)
        model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    view = on_a_gpu(model, "packed")
    with view.open():
        assert view.fused.startswith("3 layers") == (name == "usual"), view.fused
