"""Which models the engine serves, and that the others are sent away with a reason instead of wrong tokens."""

from __future__ import annotations

import pytest
import torch
from toys import END, FAMILIES, SIZES, ask, engine, make, tokens
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    LlamaConfig,
    MambaConfig,
    Qwen3NextConfig,
)

from onpolicy_sdft.build.bundle import ModelBundle
from onpolicy_sdft.config.schema import ContextConfig, RolloutConfig
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.models import trial
from onpolicy_sdft.models.load import LoadedModel
from onpolicy_sdft.models.seam import UnsupportedModel
from onpolicy_sdft.rollout.attention import SlotAttention, TorchKernels, slot_attention_forward
from onpolicy_sdft.rollout.cpu.kernels import CpuKernels
from onpolicy_sdft.rollout.engine import RolloutEngine
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.rollout.slots import LayerShape, SlotCache
from onpolicy_sdft.rollout.support import examine
from onpolicy_sdft.types import SamplingParams

SMALL = {"vocab_size": 96, "hidden_size": 32, "eos_token_id": END, "pad_token_id": END}
REFUSED = {
    "recurrent": (lambda: MambaConfig(**SMALL, num_hidden_layers=2), "AttentionInterface"),
    "linear attention": (
        lambda: Qwen3NextConfig(**{**SIZES, "num_hidden_layers": 4}),
        "AttentionInterface|layers of type",
    ),
    "alibi": (lambda: BloomConfig(**SMALL, n_layer=2, n_head=4), "AttentionInterface"),
    "attention of its own": (
        lambda: FalconConfig(**SMALL, num_hidden_layers=2, num_attention_heads=4),
        "AttentionInterface",
    ),
    "dynamic rope": (
        lambda: LlamaConfig(
            **{**SIZES, "vocab_size": 264}, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        ),
        "rope type dynamic",
    ),
}


def build(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_the_engine_cannot_serve_is_refused_with_the_reason(name):
    config, reason = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=reason):
        examine(build(config()), "cpu")


def test_such_a_model_goes_to_generate_with_one_line_that_says_why(tokenizer, logged):
    model = build(REFUSED["dynamic rope"][0]())
    bundle = ModelBundle(LoadedModel(model, tokenizer, "toy"), Renderer(tokenizer, ContextConfig()), (END,))
    backend = bundle.backend(model, RolloutConfig(), 4)
    assert isinstance(backend, HFBackend)
    (line,) = logged
    assert line.startswith("rollouts go through transformers' generate: LlamaForCausalLM: its rope type dynamic")
    served = bundle.new_backend(make("llama"), RolloutConfig(), 4)
    assert isinstance(served, RolloutEngine)
    assert bundle.backend(model, RolloutConfig(), 4) is backend


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_served_with_its_layers_shapes(family):
    model = make(family)
    shapes = examine(model, "cpu")
    assert len(shapes) == model.config.num_hidden_layers
    assert shapes[0].num_heads == getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)


def test_a_model_that_masks_a_window_without_passing_it_on_is_refused():
    model = make("mistral")
    model.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]  # its code passes it always
    with pytest.raises(UnsupportedModel, match="passes a window of 8, its config says 0"):
        examine(model, "cpu")


def test_a_model_whose_slots_would_give_other_numbers_is_refused(monkeypatch):

    monkeypatch.setattr(CpuKernels, "attend", lambda self, q, k, v, how: torch.zeros_like(q))
    with pytest.raises(UnsupportedModel, match="off its own"):
        examine(make("llama"), "cpu")


def test_a_bfloat16_model_sensitive_to_rounding_is_served_and_a_wrong_one_is_not(monkeypatch):

    model = make("llama").to(torch.bfloat16)
    monkeypatch.setitem(trial._TOLERANCE, torch.bfloat16, 1e-4)  # as if rounding grew to far more than is allowed
    examine(model, "cpu")
    monkeypatch.setattr(CpuKernels, "attend", lambda self, q, k, v, how: torch.zeros_like(q))
    with pytest.raises(UnsupportedModel, match="off its own"):
        examine(model, "cpu")


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"position_bias": torch.zeros(1)}, "passes position_bias"),
        ({"dropout": 0.1}, "drops out"),
        ({"is_causal": False}, "not causal"),
        ({"slots": None}, "keyword arguments"),
        ({"attention_mask": torch.zeros(1)}, "mask of its own"),
    ],
)
def test_what_attention_is_asked_for_and_does_not_know_is_refused(keywords, reason):
    cache = SlotCache([LayerShape(1, 4, 4)], 1, 4, torch.float32, torch.device("cpu"), TorchKernels(4))
    given = {"attention_mask": None, "slots": SlotAttention(cache), **keywords}
    x = torch.zeros(1, 1, 1, 4)
    with pytest.raises(UnsupportedModel, match=reason):
        slot_attention_forward(torch.nn.Module(), x, x, x, **given)


def test_the_attention_of_the_model_is_its_own_again_also_after_a_failure(monkeypatch):
    model = make("llama")
    one = engine(model)
    before = model.config._attn_implementation
    expected = tokens(one.generate(ask(), SamplingParams()))

    def explode(advance):
        assert model.config._attn_implementation == "sdft_slots"
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        one.generate(ask(), SamplingParams(), explode)
    assert model.config._attn_implementation == before
    assert tokens(one.generate(ask(), SamplingParams())) == expected
    assert "sdft_slots" in AttentionInterface._global_mapping
