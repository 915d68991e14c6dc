"""Adapters where they learn and can be merged; anything else is refused before the first step, by name."""

from __future__ import annotations

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    DogeConfig,
    GptOssConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from onpolicy_sdft.config.schema import LoraConfig, ModelConfig
from onpolicy_sdft.errors import ConfigError, ModelError
from onpolicy_sdft.models.export import merge_adapter
from onpolicy_sdft.models.lora import prepare_trainable
from onpolicy_sdft.models.policy import body
from onpolicy_sdft.models.ready import refuse_unreached
from onpolicy_sdft.models.targets import fix_naming, why_not

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
FAMILIES = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen2 tied": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3 moe": lambda: Qwen3MoeConfig(**SIZES, **EXPERTS),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4),
    "gpt-oss": lambda: GptOssConfig(**SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
}
IDS = torch.tensor([[1, 2, 3, 40, 50, 60, 70]])


def make(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()


def adapted(family, targets, **options):
    return prepare_trainable(make(family), LoraConfig(r=4, target_modules=targets, **options), ModelConfig(), 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "targets",
    [
        "all-linear",
        ["q_proj"],
        ["q_proj", "embed_tokens"],
        ["embed_tokens"],
        ["lm_head"],
        ["q_proj", "lm_head"],
        ["gate_proj", "up_proj"],
        ["w1", "w2", "w3"],
        [".*q_proj"],
        "all_linear",
        r".*\.(q_proj|lm_head)",
    ],
    ids=str,
)
@torch.no_grad()
def test_what_is_accepted_learns_and_merges_and_all_else_is_refused(family, targets):
    said, model = "", None
    try:
        model = adapted(family, targets)
    except ConfigError as error:
        said = str(error)
    if model is None:
        assert "lora.target_modules" in said
        assert "Fix: " in said
        return
    refuse_unreached(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    own = model.eval()(input_ids=IDS).logits
    torch.testing.assert_close(merge_adapter(model)(input_ids=IDS).logits, own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "targets", "named"),
    [
        ("llama", ["q_proj", "lm_head"], "output layer 'lm_head'"),
        ("qwen2 tied", ["lm_head"], "'lm_head'"),
        ("qwen2 tied", ["embed_tokens", "q_proj"], "'model.embed_tokens', whose weight is that of 'lm_head' too"),
        ("llama", ["q_proj", "v_porj"], "'v_porj' matches no module of the model. Did you mean 'v_proj'"),
        ("llama", ["nothing"], "'nothing' matches no module"),
        ("qwen3 moe", ["q_proj", "gate_porj"], "'gate_porj' matches no module"),
        ("mixtral", ["q_proj", "gate_proj"], "'gate_proj' matches no module"),
        ("llama", "q_proj", "list a layer's name"),
    ],
)
def test_what_cannot_be_is_refused_by_name(family, targets, named):
    with pytest.raises(ConfigError) as caught:
        adapted(family, targets)
    assert named in str(caught.value)


def test_dropout_of_experts_adapters_is_refused_as_what_it_is():
    with pytest.raises(ConfigError, match=r"lora\.dropout=0\.1: .*--lora\.dropout 0"):
        adapted("qwen3 moe", "all-linear", dropout=0.1)
    adapted("qwen3 moe", ["q_proj", "v_proj"], dropout=0.1)


UNFIT = {
    "mamba": lambda: MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=8),
    "jamba": lambda: JambaConfig(
        **SIZES, num_experts=2, attn_layer_period=2, attn_layer_offset=1, mamba_dt_rank=4, mamba_d_state=8
    ),
    "doge": lambda: DogeConfig(**SIZES),
}


@pytest.mark.parametrize("family", UNFIT)
def test_layers_that_cannot_learn_are_named_with_the_option_and_names_that_can(family):
    """The names that the last message lists are taken."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = [AutoModelForCausalLM.from_config(UNFIT[family]()) for _ in range(3)]
    targets = "all-linear"
    for model in made:
        try:
            refuse_unreached(prepare_trainable(model, LoraConfig(r=4, target_modules=targets), ModelConfig(), 0))
        except (ConfigError, ModelError) as error:
            said = str(error)
        else:
            break
        assert "lora.target_modules" in said
        assert "dt_proj" in said or "out_proj" in said
        targets = yaml.safe_load(said.partition('--lora.target_modules "')[2].partition('"')[0])
    else:
        pytest.fail(said)
    assert isinstance(targets, list)


def test_layers_with_the_same_last_name_are_told_apart():
    said = fix_naming(["a.mlp.up", "a.attn.up", "a.attn.q"], ["a.mlp.up"])
    assert "\"['attn.up', 'q']\"" in said


def test_an_error_of_peft_that_is_not_of_the_targets_is_not_blamed_on_them():
    said = why_not(LoraConfig(), ValueError("r should be a positive integer"), ["q_proj"])
    assert "target_modules" not in said
    assert "r should be a positive integer. Fix: " in said


def test_a_model_whose_layers_are_not_apart_from_its_head_is_refused():
    config = Llama4TextConfig(**SIZES, intermediate_size_mlp=48, num_local_experts=2, head_dim=8)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=r"so it cannot be trained here\. Fix: another model"):
        body(model)
