"""Whole modules and single rows beside adapters: what is refused, by name, and that what is trained has a gradient."""

from __future__ import annotations

import pytest
import torch
from test_ready import NARROW, make
from transformers import LlamaConfig, Qwen2Config, Qwen3MoeConfig

from onpolicy_sdft.api.models import lora_options
from onpolicy_sdft.config.check import check
from onpolicy_sdft.config.schema import LoraConfig, ModelConfig, RunConfig
from onpolicy_sdft.errors import ConfigError, ModelError
from onpolicy_sdft.models.beside import trained_beside, trained_rows
from onpolicy_sdft.models.load import LoadedModel
from onpolicy_sdft.models.lora import inner_model, prepare_trainable
from onpolicy_sdft.models.ready import make_ready, refuse_unreached
from onpolicy_sdft.models.sizes import sizes_of
from tests.conftest import make_model

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
FAMILIES = {
    "llama": lambda: LlamaConfig(**NARROW, tie_word_embeddings=False),
    "tied": lambda: Qwen2Config(**NARROW, tie_word_embeddings=True),
    "moe": lambda: Qwen3MoeConfig(**NARROW, **EXPERTS),
}


def adapted(family, tokenizer=None, dtype=torch.float32, **options):
    return prepare_trainable(
        make(FAMILIES[family]()).to(dtype), LoraConfig(r=4, **options), ModelConfig(), 0, tokenizer
    )


REFUSED = [
    ("llama", {"modules_to_save": ["lm_haed"]}, r"modules_to_save.*'lm_haed' matches nothing.*Did you mean 'lm_head'"),
    ("llama", {"modules_to_save": ["layers"]}, r"modules_to_save=\['layers'\]"),
    ("moe", {"target_parameters": ["experts.gate_up"]}, r"target_parameters.*Did you mean 'gate_up_proj'"),
    ("moe", {"target_parameters": ["experts.gate_up_proj"], "use_dora": True}, r"use_dora.*--lora\.use_dora false"),
    ("moe", {"use_dora": True}, r"use_dora.*experts"),
    (
        "moe",
        {"target_parameters": ["gate_up_proj"], "target_modules": ["q_proj"], "dropout": 0.1},
        r"lora\.dropout=0\.1",
    ),
    ("llama", {"trainable_token_indices": [5, 96]}, r"names 96, and the layer has rows 0 to 95"),
    ("llama", {"trainable_token_indices": [-1]}, r"names -1"),
    ("llama", {"trainable_token_indices": ["word"]}, r"'word', and there is no tokenizer"),
    ("llama", {"trainable_token_indices": {"head": [1]}}, r"trainable_token_indices.*'head' matches nothing"),
    ("tied", {"trainable_token_indices": {"embed_tokens": [1], "lm_head": [1]}}, r"'lm_head', whose weight is the emb"),
]


@pytest.mark.parametrize(("family", "options", "said"), REFUSED, ids=str)
def test_what_cannot_be_trained_beside_adapters_is_refused_with_a_fix(family, options, said):
    with pytest.raises(ConfigError, match=said) as caught:
        adapted(family, **options)
    assert "Fix: " in str(caught.value)


def test_copies_of_bfloat16_weights_are_refused_and_rows_of_them_are_float32():
    with pytest.raises(ConfigError, match=r"modules_to_save.*bfloat16.*--model\.dtype float32"):
        adapted("llama", dtype=torch.bfloat16, modules_to_save=["lm_head"])
    model = adapted("llama", dtype=torch.bfloat16, trainable_token_indices=[3], use_dora=True)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_texts_of_tokens_become_their_ids_and_longer_texts_are_refused(tokenizer):
    config = LlamaConfig(**{**NARROW, "vocab_size": 264})
    asked = LoraConfig(r=4, trainable_token_indices=["<|im_start|>", "a", 7, "a"])
    model = prepare_trainable(make(config), asked, ModelConfig(), 0, tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["<|im_start|>", "a"])
    assert trained_rows(model) == sorted([*ids, 7])
    assert trained_beside(inner_model(model)) == {"model.embed_tokens": "3 rows trained"}
    with pytest.raises(ConfigError, match=r"'ab', which is 2 tokens"):
        prepare_trainable(make(config), LoraConfig(trainable_token_indices=["ab"]), ModelConfig(), 0, tokenizer)


REACHED = [
    ("llama", {"use_dora": True}),
    ("llama", {"modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    ("tied", {"modules_to_save": ["lm_head"]}),
    ("moe", {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    ("llama", {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [3]}}),
    ("tied", {"trainable_token_indices": [1, 2]}),
]


@pytest.mark.parametrize(("family", "options"), REACHED, ids=str)
def test_all_that_is_trained_has_a_gradient(family, options):
    model = adapted(family, **options)
    refuse_unreached(model)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "part", "named"),
    [
        ({"modules_to_save": ["norm"]}, "model.norm.modules_to_save.default", "norm.modules_to_save"),
        ({"trainable_token_indices": [4]}, "model.embed_tokens.token_adapter", "trainable_tokens_delta"),
        ({"use_dora": True}, "layers.1.mlp.up_proj.lora_magnitude_vector.default", "lora_magnitude_vector"),
    ],
)
def test_a_copy_a_row_or_a_length_that_is_not_reached_is_refused_by_name(options, part, named):
    """It has a gradient, of zeros."""
    model = adapted("llama", **options)
    parameter = next(p for name, p in model.named_parameters() if part in name and p.requires_grad)
    handle = parameter.register_hook(torch.zeros_like)
    with pytest.raises(ModelError, match=named):
        refuse_unreached(model)
    handle.remove()
    refuse_unreached(model)


def test_a_line_says_what_is_trained_beside_adapters(tokenizer, logged):
    model = make(LlamaConfig(**{**NARROW, "vocab_size": 264}))
    asked = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], trainable_token_indices=[5, 6])
    model = prepare_trainable(model, asked, ModelConfig(), 0)
    make_ready(model, LoadedModel(inner_model(model), tokenizer, "tiny"))
    (line,) = logged
    assert "adapters on q_proj; model.embed_tokens: 2 rows trained; lm_head: trained whole; frozen" in line
    assert "head" not in line.partition("frozen")[2]
    assert sizes_of(model).num_trainable == 264 * 32 + 2 * 32 + 2 * 2 * 4 * 32


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["x"]),
    ],
)
@pytest.mark.parametrize("other", [{"lora": {"enabled": False}}, {"model": {"load_in_4bit": True}}], ids=str)
def test_pairs_of_options_that_cannot_be_are_refused(name, value, other):
    with pytest.raises(ConfigError, match=rf"lora\.{name}=.*Fix: "):
        check(RunConfig(ModelConfig(**other.get("model", {})), LoraConfig(**{name: value}, **other.get("lora", {}))))


def test_the_same_options_of_a_peft_config_are_read():
    from peft import LoraConfig as PeftLoraConfig

    given = PeftLoraConfig(
        use_dora=True, modules_to_save=["lm_head"], target_parameters=["b", "a"], trainable_token_indices={"embed": [1]}
    )
    found = lora_options(given)
    assert (found.use_dora, found.modules_to_save, found.target_parameters) == (True, ["lm_head"], ["a", "b"])
    assert found.trainable_token_indices == {"embed": [1]}
    assert lora_options(PeftLoraConfig()) == LoraConfig(r=8, alpha=8)


def test_copies_learn_though_activations_are_computed_again():
    model = make_model()
    config = ModelConfig(gradient_checkpointing=True)
    model = prepare_trainable(model, LoraConfig(r=4, modules_to_save=["embed_tokens"], use_dora=True), config, 0)
    refuse_unreached(model)
