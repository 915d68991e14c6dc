from __future__ import annotations

import pytest
import torch
from transformers import GptOssConfig, MixtralConfig, Qwen3MoeConfig

from onpolicy_sdft.cli.main import main
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.fitting.memory_plan import estimate, plan
from onpolicy_sdft.models.load import load
from onpolicy_sdft.models.lora import prepare_trainable
from onpolicy_sdft.models.sizes import model_sizes, sizes_of
from onpolicy_sdft.train.memory import memory_to_come, training_state, working_memory


def config(model_dir, **overrides):
    return load_config(**{"model.name": str(model_dir), "train.batch_size": 16, **overrides})


@pytest.mark.parametrize("lora", [True, False])
def test_sizes_are_those_of_the_model_itself(model_dir, tiny_model, lora):
    asked = config(model_dir, **{"lora.enabled": lora})
    sizes = model_sizes(asked.model, asked.lora)
    model = prepare_trainable(tiny_model(), asked.lora, asked.model, 0)
    assert sizes.num_parameters == sum(p.numel() for p in model.parameters())
    assert sizes.num_trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    text = model.config
    assert (sizes.num_layers, sizes.hidden_size, sizes.vocab_size) == (2, 32, 264)
    assert sizes.kv_size == text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    assert sizes_of(model) == sizes


def test_what_learning_will_take_is_what_the_plan_says_less_what_is_there(model_dir):
    asked = config(model_dir, **{"lora.enabled": False})
    sizes = model_sizes(asked.model, asked.lora)
    for backend, there in {"ddp": "buckets", "zero2": "optimizer", "zero3": "optimizer", "fsdp2": "buckets"}.items():
        parts = training_state(sizes, backend, 4) | working_memory(asked, sizes, backend, 4)
        assert memory_to_come(asked, sizes, backend, 4) == int(sum(parts.values()) - parts[there])
        planned = estimate(asked, sizes, backend, 4, 4).parts
        assert {name: planned[name] for name in ("gradients", "optimizer")} == training_state(sizes, backend, 4)


def test_a_base_in_four_bits_takes_about_a_seventh_of_float32(model_dir):
    whole, packed = (config(model_dir, **{"model.load_in_4bit": flag}) for flag in (False, True))
    sizes = [model_sizes(asked.model, asked.lora) for asked in (whole, packed)]
    linear = sizes[1].num_quantised
    assert 0 < linear < sizes[1].num_parameters - sizes[1].num_trainable
    assert sizes[0].num_bytes - sizes[1].num_bytes == linear * (4 - 0.5625)


def test_what_is_divided_among_ranks_is_divided(model_dir):
    asked = config(model_dir, **{"lora.enabled": False, "teacher.weights": "ema"})
    sizes = model_sizes(asked.model, asked.lora)
    found = {name: estimate(asked, sizes, name, 4, 4).parts for name in ("ddp", "zero1", "zero2", "zero3", "fsdp2")}
    whole = 4 * sizes.num_parameters
    assert [found[n]["parameters"] / whole for n in found] == [1, 1, 1, 0.25, 0.25]
    assert [found[n]["gradients"] / whole for n in found] == [1, 1, 0.25, 0.25, 0.25]
    assert [found[n]["optimizer"] / whole for n in found] == [2, 0.75, 0.75, 0.75, 0.5]
    assert found["ddp"]["teacher"] == whole
    offloaded = estimate(asked, sizes, "zero3_offload", 4, 4).parts
    assert "parameters" not in offloaded
    assert "optimizer" not in offloaded
    assert offloaded["gradients"] == whole / 4


def test_a_replica_stays_while_learning_and_gathered_weights_do_not(model_dir):
    def gathered(**overrides):
        asked = config(model_dir, **{"rollout.max_new_tokens": 1, "train.micro_batch_tokens": 100_000, **overrides})
        return estimate(asked, model_sizes(asked.model, asked.lora), "zero3", 4, 1).parts.get("gathered", 0)

    assert gathered() > 0
    assert gathered(**{"rollout.weights": "gather"}) == 0
    assert gathered(**{"lora.enabled": False}) == 0
    assert gathered(**{"lora.enabled": False, "rollout.weights": "replica"}) > 0


def test_a_blended_rollout_takes_two_slots(model_dir):
    def slots(most, **overrides):
        asked = config(model_dir, **{"rollout.max_new_tokens": 1000, **overrides})
        sizes = model_sizes(asked.model, asked.lora)
        length = asked.context.max_teacher_tokens + asked.rollout.max_new_tokens
        a_slot = length * 2 * sizes.num_layers * sizes.kv_size * sizes.bytes_per_parameter
        return estimate(asked, sizes, "ddp", 1, most).parts["keys and values"] / a_slot

    assert [slots(6), slots(6, **{"rollout.blend": 0.5}), slots(6, **{"rollout.blend_budget": 0.1})] == [6, 12, 12]
    assert [slots(6, **{"rollout.num_slots": 8, "rollout.blend": blend}) for blend in (0.0, 0.5)] == [6, 8]


def test_the_first_backend_that_fits_is_recommended(model_dir):
    asked = config(model_dir, **{"lora.enabled": False})
    assert plan(asked, 4, 80).recommended == "ddp"
    assert plan(asked, 4, 1e-6).recommended is None
    sizes = model_sizes(asked.model, asked.lora)
    peaks = {row.backend: row.peak for row in plan(asked, 4, 80).rows}
    assert peaks["ddp"] > peaks["zero1"] > peaks["zero2"]
    assert plan(asked, 4, peaks["zero1"] / 0.9 / 2**30 + 1e-9).recommended == "zero1"
    assert sizes.num_adapted == 0


def test_nobody_is_left_without_work(model_dir):
    with pytest.raises(ConfigError, match="batch_size 32 or more"):
        plan(config(model_dir), 32, 80)


def test_the_command_prints_a_table_and_its_advice(model_dir, capsys):
    flags = ["--model.name", str(model_dir), "--gpus", "4", "--gpu_memory", "24"]
    assert main(["plan", *flags]) == 0
    shown = capsys.readouterr().out
    assert "zero3" in shown
    assert "Take ddp" in shown
    assert "about 4 on a rank" in shown
    assert main(["plan", *flags, "--gpu_memory", "0.000001"]) == 1
    assert torch.get_default_device().type == "cpu"


MOE = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
MIXTURES = {
    "qwen3 moe": lambda: Qwen3MoeConfig(
        **MOE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "mixtral": lambda: MixtralConfig(**MOE, num_local_experts=4),
    "gpt-oss": lambda: GptOssConfig(**MOE, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
}


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["q_proj", "embed_tokens"]])
@pytest.mark.few(3)
def test_mixtures_of_experts_are_planned(tmp_path, capsys, family, targets):
    mixture = MIXTURES[family]()
    mixture.tie_word_embeddings = False
    mixture.save_pretrained(tmp_path)
    assert main(["plan", "--model.name", str(tmp_path), "--lora.target_modules", str(targets), "--gpus", "2"]) == 0
    assert "zero3" in capsys.readouterr().out
    asked = config(tmp_path, **{"lora.target_modules": targets})
    sizes = model_sizes(asked.model, asked.lora)
    experts = 4 * 2 * 3 * 32 * mixture.moe_intermediate_size if family == "qwen3 moe" else 0
    whole = sizes.num_parameters - sizes.num_trainable
    assert (experts if targets == "all-linear" else 0) < sizes.num_adapted < whole


def test_a_model_that_is_an_adapter_is_planned_as_its_base(model_dir, tmp_path):
    asked = config(model_dir)
    model = prepare_trainable(load(asked.model).model, asked.lora, asked.model, 0)
    model.save_pretrained(tmp_path)
    on_it = config(tmp_path)
    assert model_sizes(on_it.model, on_it.lora) == model_sizes(asked.model, asked.lora)
