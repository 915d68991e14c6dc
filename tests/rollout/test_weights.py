"""Decode copies give the model's own logits, cost what they say, and leave the weights alone."""

from __future__ import annotations

import hashlib

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from toys import logits, make, with_adapter
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from onpolicy_sdft.models.seam import UnsupportedModel
from onpolicy_sdft.rollout import weights
from onpolicy_sdft.rollout.weights import LocalWeights, can_pack, whole_weights


def sha256(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "unmerged"])
@pytest.mark.parametrize("copy", ["none", "packed", "auto"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
@pytest.mark.few(16)
def test_a_copy_computes_the_models_own_logits_and_leaves_no_trace(family, copy, merge, adapter):
    model = with_adapter(make(family)) if adapter else make(family)
    before, own = sha256(model), logits(model)
    pointers = [p.data_ptr() for p in model.parameters()]
    view = LocalWeights(model, merge, copy)
    with view.open():
        torch.testing.assert_close(logits(model), own, atol=2e-4, rtol=1e-4)
        assert sha256(model) == before
    assert torch.equal(logits(model), own)
    assert sha256(model) == before
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
@pytest.mark.parametrize("copy", ["none", "packed", "auto", "bfloat16"])
def test_float32_adapters_that_are_not_merged_are_read_over_a_bfloat16_base(family, copy):
    model = with_adapter(make(family, torch.bfloat16))
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.float32}
    own = logits(model)
    with LocalWeights(model, False, copy).open():
        torch.testing.assert_close(logits(model), own, atol=0.5, rtol=0.1)
    assert torch.equal(logits(model), own)


def test_an_exception_inside_closes_the_view():
    model = with_adapter(make("llama"))
    before, own = sha256(model), logits(model)
    with pytest.raises(RuntimeError, match="inside"), LocalWeights(model, True, "bfloat16").open():
        raise RuntimeError("inside")
    assert sha256(model) == before
    assert torch.equal(logits(model), own)


def test_a_bfloat16_copy_of_float32_weights_is_near_and_costs_what_it_says():
    model = with_adapter(make("llama"))
    own = logits(model)
    view = LocalWeights(model, True, "bfloat16")
    with view.open():
        inside = logits(model)
        assert inside.dtype == torch.bfloat16
    assert logits(model).dtype == torch.float32
    assert (inside.float() - own).abs().mean() < 0.1 * own.std()
    num_weights = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    assert 2 * num_weights <= view.num_bytes <= 2.7 * num_weights  # tied embedding and head are two copies


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_a_copy_takes_is_counted(dtype):
    model = make("llama", dtype)
    view = LocalWeights(model, True, "packed")
    with view.open():
        pass
    linears = [m for m in model.modules() if type(m) is torch.nn.Linear]
    expected = sum(m.weight.nbytes for m in linears) if can_pack(dtype) else 0
    assert view.num_bytes == expected


def test_an_adapter_that_is_switched_off_is_not_merged():
    model = with_adapter(make("llama"))
    with model.disable_adapter():
        base = logits(model)
        with LocalWeights(model, True, "packed").open():
            torch.testing.assert_close(logits(model), base, atol=2e-4, rtol=1e-4)
    assert (logits(model) - base).abs().max() > 0.1


def test_a_forward_of_a_modules_own_is_put_back():
    model = make("llama")
    layer = model.model.layers[0].mlp.up_proj
    own = layer.forward
    layer.forward = lambda x: own(x) * 2
    patched = layer.forward
    with LocalWeights(model, True, "packed").open():
        assert layer.forward is not patched
    assert layer.forward is patched


def test_a_dtype_that_this_cpu_cannot_pack_is_decoded_from_as_it_is(monkeypatch):
    def refuse(weight):
        raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw")

    can_pack.cache_clear()
    monkeypatch.setattr(weights, "pack_linear", refuse)
    assert not can_pack(torch.bfloat16)
    view = LocalWeights(make("llama", torch.bfloat16), True, "auto")
    with view.open():
        assert view.num_bytes == 0
    can_pack.cache_clear()


def test_weights_are_handed_over_as_a_checkpoint_has_them_with_adapters_merged(tiny_model, tmp_path):
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    handed = {name: tensor.clone() for name, tensor in whole_weights(model.get_base_model())}
    with model.disable_adapter():
        bare = dict(whole_weights(model.get_base_model()))
    assert not torch.equal(bare["model.layers.0.mlp.up_proj.weight"], handed["model.layers.0.mlp.up_proj.weight"])
    torch.testing.assert_close(bare, tiny_model().state_dict())
    torch.testing.assert_close(handed, model.merge_and_unload().state_dict())


def test_experts_are_handed_over_one_by_one_as_their_checkpoints_hold_them(tmp_path):
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=3, num_experts_per_tok=2,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    handed = dict(whole_weights(model))
    assert "model.layers.1.mlp.experts.2.gate_proj.weight" in handed
    torch.testing.assert_close({name: handed[name].contiguous() for name in saved}, saved)
    assert handed.keys() - saved.keys() <= {"lm_head.weight"}


def test_an_adapter_that_cannot_be_merged_is_not_handed_over(tiny_model):
    lora = LoraConfig(r=4, target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), lora)
    with pytest.raises(UnsupportedModel, match="embed_tokens"):
        list(whole_weights(model.get_base_model()))
