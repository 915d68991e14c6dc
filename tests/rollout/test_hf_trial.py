"""``generate`` is tried before the first token, as the engine is."""

from __future__ import annotations

import pytest
import torch
from toys import END, FAMILIES, SIZES, make, with_adapter
from transformers import AutoModelForCausalLM, BloomConfig, FalconConfig, MambaConfig, MiniMaxConfig, Qwen3NextConfig
from transformers.models.minimax import modeling_minimax

from onpolicy_sdft.errors import ModelError
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.rollout.hf_trial import hf_backend, how_far_generate_is_off

SMALL = {"vocab_size": 96, "hidden_size": 32, "eos_token_id": END, "pad_token_id": END}
OTHERS = {
    "mamba": lambda: MambaConfig(**SMALL, num_hidden_layers=2),
    "bloom": lambda: BloomConfig(**SMALL, n_layer=2, n_head=4),
    "falcon": lambda: FalconConfig(**SMALL, num_hidden_layers=2, num_attention_heads=4),
    "qwen3 next": lambda: Qwen3NextConfig(**{**SIZES, "num_hidden_layers": 4}),
}


def build(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def tried(model, batch_size=4):
    return hf_backend(model, (END,), END, batch_size, True, None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_of_the_engine_pass_the_trial(family, dtype):
    assert tried(make(family, dtype)).batch_size == 4


@pytest.mark.parametrize("family", OTHERS)
def test_families_that_only_generate_serves_pass_the_trial(family):
    assert tried(build(OTHERS[family]())).batch_size == 4


def test_adapters_pass_the_trial():
    assert tried(with_adapter(make("llama"))).batch_size == 4


def test_a_model_that_reads_padding_writes_one_text_at_a_time_and_says_so(monkeypatch, logged):
    """As linear attention did before transformers masked its padding."""
    model = build(MiniMaxConfig(**{**SIZES, "pad_token_id": None}, num_local_experts=4))
    monkeypatch.setattr(modeling_minimax, "apply_mask_to_padding_states", lambda hidden, mask: hidden, raising=False)
    assert tried(model).batch_size == 1
    assert "written one at a time" in logged[0]


def test_a_mask_that_is_ignored_is_found(monkeypatch, logged):
    model = make("llama")
    forward = type(model).forward

    def without_mask(self, *args, **kwargs):
        return forward(self, *args, **{**kwargs, "attention_mask": None})

    monkeypatch.setattr(type(model), "forward", without_mask)
    assert tried(model).batch_size == 1


def test_a_cache_that_changes_the_text_is_refused(monkeypatch, logged):
    model = make("llama")
    forward = type(model).forward

    def misread(self, input_ids, *args, **kwargs):
        return forward(self, (input_ids + 1) % END if input_ids.shape[1] == 1 else input_ids, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", misread)
    with pytest.raises(ModelError, match="even for one text alone.* Fix: "):
        tried(model)


def test_the_trial_leaves_the_model_as_it_was():
    model = with_adapter(make("llama")).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert how_far_generate_is_off(HFBackend(model, (END,), END, 4)) == 0
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
