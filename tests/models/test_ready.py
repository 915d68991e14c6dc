"""What is tried before the first step: no noise but lora_dropout, a gradient for every trained parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3MoeConfig,
    Starcoder2Config,
)

from onpolicy_sdft.config.schema import LoraConfig, ModelConfig
from onpolicy_sdft.errors import ModelError
from onpolicy_sdft.models.load import LoadedModel
from onpolicy_sdft.models.lora import prepare_trainable
from onpolicy_sdft.models.randomness import own_dropout, refuse_random, silence
from onpolicy_sdft.models.ready import make_ready, refuse_unreached

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OLD = {"vocab_size": 96, "n_layer": 2, "n_head": 4}
NARROW = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
RANDOM = {
    "llama": lambda: LlamaConfig(**NARROW, attention_dropout=0.3),
    "opt (layer drop)": lambda: OPTConfig(
        **SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.3, layerdrop=0.5
    ),
    "bloom": lambda: BloomConfig(**OLD, hidden_size=32, hidden_dropout=0.3, attention_dropout=0.3),
    "falcon": lambda: FalconConfig(**SIZES, hidden_dropout=0.3, attention_dropout=0.3),
    "gpt2": lambda: GPT2Config(**OLD, n_embd=32),
    "starcoder2": lambda: Starcoder2Config(**NARROW, residual_dropout=0.3, embedding_dropout=0.3),
    "mixtral (router jitter)": lambda: MixtralConfig(**NARROW, num_local_experts=4, router_jitter_noise=0.5),
}


def make(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", RANDOM)
@pytest.mark.parametrize("lora", [True, False])
def test_nothing_is_random_but_lora_dropout(family, lora):
    model = make(RANDOM[family]())
    before = model.config.to_dict()
    with pytest.raises(ModelError, match="first output that differs"):
        refuse_random(model)
    dropout = 0.0 if "mixtral" in family else 0.5
    model = prepare_trainable(model, LoraConfig(enabled=lora, dropout=dropout), ModelConfig(), 0)
    silence(model)
    refuse_random(model)
    if not lora:
        with own_dropout(model):
            assert model.config.to_dict() == before
    drops = [getattr(m, "p", 0.0) for name, m in model.named_modules() if name.endswith("lora_dropout.default")]
    assert bool(drops) == lora
    assert set(drops) <= {dropout}


def test_the_seed_and_the_flags_stay_as_they_were(tiny_model):
    model = tiny_model().eval()
    model.model.layers[0].train()
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    silence(model)
    refuse_random(model)
    refuse_unreached(model)
    assert torch.equal(state, torch.get_rng_state())
    assert flags == [module.training for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_noise_that_no_rate_is_named_for_is_refused_with_the_modules_name(tiny_model):
    model = tiny_model()

    def disturb(module, inputs, output):
        return output + torch.randn_like(output) if module.training else output

    model.model.layers[1].mlp.down_proj.register_forward_hook(disturb)
    silence(model)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.down_proj"):
        refuse_random(model)


@pytest.mark.parametrize("lora", [True, False])
def test_every_trained_parameter_of_a_plain_model_learns(tiny_model, lora):
    refuse_unreached(prepare_trainable(tiny_model(), LoraConfig(enabled=lora), ModelConfig(), 0))


def test_adapters_on_experts_learn():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    model = make(Qwen3MoeConfig(**NARROW, **experts))
    refuse_unreached(prepare_trainable(model, LoraConfig(), ModelConfig(), 0))


@pytest.mark.parametrize(("factor", "lora"), [(None, False), (None, True), (0.0, True)])
def test_a_trained_parameter_that_the_loss_does_not_reach_is_refused_by_name(tiny_model, factor, lora):
    """It is detached, not used, or what it gives is multiplied by 0."""
    model = prepare_trainable(tiny_model(), LoraConfig(enabled=lora), ModelConfig(), 0)
    layer = next(m for name, m in model.named_modules() if name.endswith("layers.1.self_attn.v_proj"))
    layer.register_forward_hook(lambda _, __, output: output.detach() if factor is None else output * factor)
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.\w+_proj.* Fix: "):
        refuse_unreached(model)


def test_a_parameter_that_no_forward_uses_is_refused_by_name(tiny_model):
    model = tiny_model()
    model.spare = nn.Linear(4, 4)
    model.requires_grad_(True)
    with pytest.raises(ModelError, match=r"spare\.weight"):
        refuse_unreached(model)


def test_weights_that_were_divided_before_they_came_cannot_be_tried_and_that_is_said(tiny_model, tokenizer, logged):
    model = tiny_model()
    loaded = LoadedModel(model, tokenizer, "tiny")
    model.get_input_embeddings().weight.data = torch.empty(0)
    make_ready(model, loaded)
    assert "cannot be tried: its weights were divided among the ranks before" in logged[0]


def test_what_adapters_do_not_reach_is_said_in_one_line(tokenizer, logged):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    model = make(Qwen3MoeConfig(**{**NARROW, "vocab_size": 264}, **experts))
    frozen = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    share = 100 * frozen / sum(p.numel() for p in model.parameters())
    model = prepare_trainable(model, LoraConfig(target_modules=["q_proj", "v_proj"]), ModelConfig(), 0)
    make_ready(model, LoadedModel(model.get_base_model(), tokenizer, "tiny"))
    assert len(logged) == 1
    assert "adapters on q_proj, v_proj" in logged[0]
    assert f"{share:.2g} % of the weights are frozen experts" in logged[0]
