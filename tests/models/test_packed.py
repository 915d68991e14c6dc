"""Packed rows are learned as padded ones are: the same loss, the same gradients, and no row sees another."""

from __future__ import annotations

import contextlib

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, Lfm2Config, LlamaConfig, MambaConfig, Phi3Config

from onpolicy_sdft.data.collate import collate
from onpolicy_sdft.models import packed as packed_module
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.packed import Packing, Scoring, attention_of, kernel_takes, packed_attention
from onpolicy_sdft.models.packing import Packs, examine
from onpolicy_sdft.models.policy import Policy, body
from onpolicy_sdft.objectives.inputs import LossInputs
from onpolicy_sdft.objectives.objective import Objective
from onpolicy_sdft.types import TrainingRow
from tests.rollout.toys import END, FAMILIES, SIZES, make, with_adapter

PAD = END
#: Their own eager softmax is float32 in any dtype, and gpt_oss has no float64 products.
FLOAT32 = {"gemma2", "gpt_oss"}
CPU = torch.device("cpu")


def row(num_prompt: int, num_target: int, seed: int = 0, **options) -> TrainingRow:
    generator = torch.Generator().manual_seed(1000 * seed + num_prompt)
    ids = torch.randint(0, END, (num_prompt + num_target,), generator=generator).tolist()
    return TrainingRow(tuple(ids[:num_prompt]), tuple(ids[num_prompt:]), **options)


#: 5 to 64 tokens; neighbours of one length, and one that learns nothing.
ROWS = [row(3, 5), row(40, 24), row(7, 1), row(5, 0), row(10, 20, num_skipped=2), row(12, 18)]


def make_phi3():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(Phi3Config(**SIZES, sliding_window=16)).double().eval()


def learn(model, rows, *, packed):
    policy = Policy(model)
    policy.zero_grad()
    batch = collate(rows, PAD, packed=packed)
    with attention_of(batch, policy):
        loss, _ = policy(batch, Objective(), LossInputs(batch.weights, batch.plain))
        loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance):
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=0.0)
    assert found[1].keys() == expected[1].keys()
    largest = max(gradient.abs().max().item() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=tolerance, atol=tolerance * largest, msg=name)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", [*FAMILIES, "phi3"])
@pytest.mark.few(8)
def test_loss_and_gradients_are_those_of_padded_rows(family, lora):
    dtype = torch.float32 if family in FLOAT32 else torch.float64
    model = make_phi3() if family == "phi3" else make(family, dtype)
    assert examine(model, contextlib.nullcontext, CPU, dtype) == Packs()
    model = with_adapter(model) if lora else model
    # Gemma's norms compute in float32 whatever the model is in.
    tolerance = 1e-9 if dtype == torch.float64 and not family.startswith("gemma") else 2e-5
    assert_same(learn(model, ROWS, packed=True), learn(model, ROWS, packed=False), tolerance)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_gradient_checkpointing_attends_again_as_it_did(family, reentrant):
    model = with_adapter(make(family, torch.float64))
    expected = learn(model, ROWS, packed=True)
    inner = inner_model(model)
    inner.gradient_checkpointing_enable({"use_reentrant": reentrant})
    inner.enable_input_require_grads()
    for module in model.modules():  # as in learning, but without the adapters' dropout
        module.training = not isinstance(module, torch.nn.Dropout)
    assert_same(learn(model, ROWS, packed=True), expected, 1e-9)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_other_tokens_in_one_row_change_nothing_of_another(family):
    model = make(family)
    hidden = []
    for seed in (0, 1):
        batch = collate([row(20, 12), row(9, 30, seed), row(11, 17)], PAD, packed=True)
        packing = Packing.of(batch.packed_lengths, CPU)
        with packed_attention(model), torch.no_grad():
            hidden.append(
                body(model)(
                    input_ids=batch.input_ids, position_ids=packing.positions, use_cache=False, packing=packing
                ).last_hidden_state[0]
            )
    first, second = hidden
    around = torch.cat([torch.arange(32), torch.arange(32 + 39, 32 + 39 + 28)])
    if family == "gpt_oss":  # experts take their tokens together, in another order
        torch.testing.assert_close(first[around], second[around], rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(first[around], second[around])
    assert not torch.allclose(first[32:71], second[32:71])


def test_a_micro_batch_without_loss_tokens_reaches_every_weight():
    model = make("llama", torch.float64)
    loss, gradients = learn(model, [TrainingRow((PAD,), ())], packed=True)
    assert loss == 0.0
    assert gradients.keys() == {name for name, _ in Policy(model).named_parameters()}


def test_the_attention_of_the_model_is_its_own_again_also_after_a_failure():
    model = make("llama")
    own = model.config._attn_implementation
    with pytest.raises(KeyError), packed_attention(model):
        raise KeyError
    assert model.config._attn_implementation == own
    learn(model, ROWS, packed=True)
    assert model.config._attn_implementation == own


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2), "AttentionInterface"),
        (BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4), "AttentionInterface"),
        (Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]), "layers of type conv"),
        (LlamaConfig(**SIZES, attention_dropout=0.1), "drops out"),
        (LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "dynamic"),
    ],
    ids=["mamba", "bloom", "lfm2", "dropout", "dynamic_rope"],
)
def test_a_model_that_cannot_says_why(config, reason):
    model = AutoModelForCausalLM.from_config(config).eval()
    assert reason in examine(model, contextlib.nullcontext, CPU, torch.float32).refusal


def test_a_model_that_packed_rows_would_give_other_numbers_is_refused(monkeypatch):
    model = make("llama")
    monkeypatch.setattr(packed_module, "_attend", lambda q, k, v, how: torch.zeros_like(q))
    assert "off its own" in examine(model, contextlib.nullcontext, CPU, torch.float32).refusal


def test_a_layer_whose_window_is_not_the_configs_is_refused():
    model = make("llama")
    model.config.sliding_window, model.config.layer_types = 8, ["sliding_attention"] * 3
    assert (
        "passes a window of 0, its config says 8" in examine(model, contextlib.nullcontext, CPU, torch.float32).refusal
    )


def test_what_the_gpus_kernel_does_not_compute_is_padded_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu = torch.device("cuda")
    plain = Scoring(0.125, 0, 0.0, None, 64, 64)
    assert kernel_takes(gpu, torch.bfloat16, plain)
    assert not kernel_takes(gpu, torch.float32, plain)
    assert not kernel_takes(CPU, torch.bfloat16, plain)
    assert not kernel_takes(gpu, torch.bfloat16, Scoring(0.125, 0, 50.0, None, 64, 64))
    assert not kernel_takes(gpu, torch.bfloat16, Scoring(0.125, 0, 0.0, None, 192, 128))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not kernel_takes(gpu, torch.bfloat16, plain)
    found = examine(make("llama"), contextlib.nullcontext, gpu, torch.float32)
    assert found.refusal == ""
    assert "torch.float32" in found.drawback


def text_by_text(query, key, value, packing, how):
    return packed_module._text_by_text(query, key, value, packing.lengths, how)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [0, 8])
@pytest.mark.parametrize("num_keys", [2, 4])
def test_the_gpus_kernel_attends_as_each_text_by_itself_does(window, num_keys):
    generator = torch.Generator("cuda").manual_seed(0)
    lengths = [5, 64, 17, 1]
    packing = Packing.of(lengths, torch.device("cuda"))
    how = Scoring(0.125, window, 0.0, None, 64, 64)
    found = []
    for attend in (packed_module._all_at_once, text_by_text):
        generator.manual_seed(0)
        q, k, v = (
            torch.randn(1, heads, sum(lengths), 64, device="cuda", dtype=torch.bfloat16, generator=generator)
            for heads in (4, num_keys, num_keys)
        )
        asked = [tensor.requires_grad_() for tensor in (q, k, v)]
        out = attend(*asked, packing, how)
        (out.float() * torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)).sum().backward()
        found.append([out, *(tensor.grad for tensor in asked)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)
