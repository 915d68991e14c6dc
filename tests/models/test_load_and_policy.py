from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    VaultGemmaConfig,
)

from onpolicy_sdft.config.schema import LoraConfig, ModelConfig, OptimConfig
from onpolicy_sdft.data.collate import collate
from onpolicy_sdft.errors import ConfigError, ModelError
from onpolicy_sdft.models.load import load, load_tokenizer, terminator_ids
from onpolicy_sdft.models.lora import inner_model, prepare_trainable
from onpolicy_sdft.models.policy import Policy, body, check_head, head_of, hidden_at_loss_tokens
from onpolicy_sdft.train.optim import make_optimizer
from onpolicy_sdft.types import TrainingRow

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8)),
    "gemma2 (soft cap)": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, final_logit_softcapping=5.0)
    ),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
    "cohere (logit scale)": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "granite (logit scaling)": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_our_head_gives_the_models_own_logits(family):
    model = FAMILIES[family]().eval()
    check_head(model)
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        ours = head_of(model).logits(body(model)(input_ids=ids).last_hidden_state)
        torch.testing.assert_close(ours, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


@pytest.fixture(params=[Gemma2Config, VaultGemmaConfig], ids=["gemma2", "vaultgemma"])
def capped_dir(request, tokenizer, tmp_path):
    """A folder with a model that caps its attention scores, so low that every score is capped."""
    config = request.param(**{**SIZES, "vocab_size": 264}, num_key_value_heads=2, head_dim=8, initializer_range=0.3)
    config.attn_logit_softcapping = 0.5
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_model_that_caps_its_attention_is_loaded_with_its_cap(capped_dir):
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(capped_dir, attn_implementation="eager")(input_ids=ids).logits
        torch.testing.assert_close(load(ModelConfig(name=str(capped_dir))).model(input_ids=ids).logits, expected)


def test_attention_that_leaves_a_models_cap_out_is_refused_when_asked_for(capped_dir):
    with pytest.raises(ModelError, match=r"=sdpa does not compute the attention of .*Fix: leave the option out"):
        load(ModelConfig(name=str(capped_dir), attn_implementation="sdpa"))


def test_a_head_that_is_not_known_is_refused(tiny_model):
    model = tiny_model()
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 1.7)
    with pytest.raises(ModelError, match="not known here"):
        Policy(model)


def test_a_saved_adapter_is_merged_into_its_base(model_dir, tmp_path):
    config = ModelConfig(name=str(model_dir))
    model = prepare_trainable(load(config).model, LoraConfig(r=4), config, seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path / "adapter")
    merged = load(dataclasses.replace(config, name=str(tmp_path / "adapter"))).model
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_the_same_seed_gives_the_same_adapters_and_leaves_the_global_state(model_dir):
    config = ModelConfig(name=str(model_dir))
    models = [prepare_trainable(load(config).model, LoraConfig(r=4), config, seed) for seed in (1, 1, 2)]
    weights = [{n: p for n, p in m.named_parameters() if "lora_A" in n} for m in models]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert not all(torch.equal(weights[0][n], weights[2][n]) for n in weights[0])
    model = load(config).model
    before = torch.get_rng_state()
    prepare_trainable(model, LoraConfig(r=4), config, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_adapters_are_float32_on_a_bfloat16_base_and_the_base_is_frozen(model_dir):
    config = ModelConfig(name=str(model_dir), dtype="bfloat16")
    model = prepare_trainable(load(config).model, LoraConfig(), config, seed=0)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
    make_optimizer(model, OptimConfig())


def test_training_bfloat16_weights_is_refused_with_the_way_out(tiny_model):
    with pytest.raises(ModelError, match="--model.dtype float32"):
        make_optimizer(tiny_model(torch.bfloat16), OptimConfig())


def test_unknown_target_modules_are_refused(tiny_model):
    with pytest.raises(ConfigError, match="target_modules"):
        prepare_trainable(tiny_model(), LoraConfig(target_modules=["nothing"]), ModelConfig(), 0)


def test_a_model_that_is_not_there_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="model.name"):
        load(ModelConfig(name=str(tmp_path / "nothing")))


def test_four_bit_without_a_cuda_device_is_refused_with_the_way_out(model_dir, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="load_in_4bit false"):
        load(ModelConfig(name=str(model_dir), load_in_4bit=True))


def test_a_tokenizer_without_a_chat_template_gets_a_plain_one_and_a_warning(model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no chat template"):
        plain = load_tokenizer(str(tmp_path), ModelConfig(name="base model"))
    text = plain.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "User: hi\nAssistant:"


def test_the_plain_chat_template_begins_as_the_tokenizer_does_and_ends_answers(model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no chat template"):
        plain = load_tokenizer(str(tmp_path), ModelConfig(name="base model"))
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]
    text = plain.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>User: hi\nAssistant: Hello<|im_end|>\n"
    assert plain(text, add_special_tokens=False)["input_ids"] == plain(text.removeprefix("<|im_start|>"))["input_ids"]


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_numbers(model_dir, tmp_path):
    load(ModelConfig(name=str(model_dir))).model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.add_tokens([f"<tool_{number}>" for number in range(9)])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"3 tokens .* up to 266 .* has 264 rows\. Fix: "):
        load(ModelConfig(name=str(tmp_path)))


def test_a_tokenizer_without_a_padding_token_is_left_so(model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), ModelConfig(name=str(tmp_path))).pad_token is None


def test_an_adapter_whose_base_is_gone_is_refused_with_where_it_was(model_dir, tmp_path):
    config = ModelConfig(name=str(model_dir))
    model = prepare_trainable(load(config).model, LoraConfig(r=4), config, seed=0)
    model.peft_config["default"].base_model_name_or_path = "/nowhere/base"
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"/nowhere/base, which is not there\. Fix: "):
        load(ModelConfig(name=str(tmp_path)))


def test_an_adapter_names_the_revision_of_its_base(tiny_model):
    model = prepare_trainable(tiny_model(), LoraConfig(r=4), ModelConfig(name="me/mine", revision="v2"), seed=0)
    assert model.peft_config["default"].revision == "v2"


def test_all_terminators_of_the_generation_config_count(tiny_model, tokenizer):
    model = tiny_model()
    model.generation_config.eos_token_id = [5, 9]
    assert terminator_ids(model, tokenizer) == (5, 9, 257)


def test_gradient_checkpointing_gives_the_same_gradient(make_pair):
    plain, checkpointed = make_pair
    ids = torch.arange(1, 30)[None]
    gradients = []
    for model in (plain, checkpointed):
        model.train()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({n: p.grad for n, p in inner_model(model).named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.fixture
def make_pair(model_dir):
    configs = [ModelConfig(name=str(model_dir), gradient_checkpointing=flag) for flag in (False, True)]
    return [prepare_trainable(load(c).model, LoraConfig(r=4), c, seed=0) for c in configs]


def test_padding_asks_for_no_position_that_a_model_does_not_have():
    config = GPT2Config(vocab_size=96, n_positions=50, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    batch = collate([TrainingRow((3,) * 40, (5,) * 9), TrainingRow((4,), (6, 7))], 0)
    assert batch.input_ids.shape[1] > config.n_positions
    hidden = hidden_at_loss_tokens(model, batch)
    alone = model.transformer(torch.tensor([[4, 6, 7]])).last_hidden_state[0, :2]
    torch.testing.assert_close(hidden[-2:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", ["10GB", "20KB"], ids=["one file", "several files"])
def test_the_dtype_of_the_files_is_read_from_them_where_the_config_does_not_say(model_dir, tmp_path, limit):
    AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).save_pretrained(
        tmp_path, max_shard_size=limit
    )
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    silent = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    (tmp_path / "config.json").write_text(json.dumps(silent))
    loaded = load(ModelConfig(name=str(tmp_path), dtype="float32"))
    assert loaded.model.dtype == torch.float32
    assert loaded.stored_dtype == torch.bfloat16
