"""What vLLM cannot do is refused when options are read, with the way out."""

from __future__ import annotations

import pytest
from changed import config_with

from onpolicy_sdft.config.check import check
from onpolicy_sdft.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        ({"rollout.blend": 0.5}, "--rollout.backend engine, or leave it at 0.0"),
        ({"rollout.blend_budget": 0.5}, "leave it at None"),
        ({"rollout.max_draft_tokens": 0}, "leave it at 8"),
        ({"rollout.drafts": []}, "leave it at"),
        ({"rollout.draft_store_tokens": 0}, "leave it at"),
        ({"rollout.attention": "torch"}, "leave it at 'auto'"),
        ({"rollout.sync_steps": 2}, "leave it at 8"),
        ({"rollout.merge_adapter": False}, "leave it at True"),
        ({"rollout.deterministic": True, "rollout.num_slots": 4}, "leave it at False"),
        ({"rollout.decode_copy": "packed"}, "--rollout.decode_copy auto"),
        ({"rollout.weights": "sharded"}, "--rollout.weights gather"),
        ({"model.load_in_4bit": True}, "--model.load_in_4bit false"),
        ({"lora.modules_to_save": ["lm_head"]}, "what is not handed to vLLM"),
        ({"lora.trainable_token_indices": [1]}, "what is not handed to vLLM"),
        ({"lora.target_parameters": ["experts.up"]}, "what is not handed to vLLM"),
        ({"rollout.temperature": 0.001}, "0.01 and above"),
        ({"rollout.temperature_end": 0.001}, "0.01 and above"),
        ({"rollout.top_p": 0.9, "rollout.min_p": 0.1}, "rollout.top_p 1 or min_p 0"),
        ({"rollout.top_p": 0.9, "rollout.min_p_end": 0.1}, "rollout.top_p 1 or min_p 0"),
        ({"rollout.backend": "engine", "rollout.max_mismatch": 0.1}, "leave it unset"),
    ],
)
def test_options_that_vllm_cannot_serve_are_refused_with_the_way_out(options, way_out):
    with pytest.raises(ConfigError, match="Fix: ") as refused:
        check(config_with(**{"rollout.backend": "vllm", **options}))
    assert way_out in str(refused.value)


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        ({"rollout.blend": 0.5}, "--rollout.backend engine, or leave it at 0.0"),
        ({"rollout.merge_adapter": False}, "leave it at True"),
        ({"rollout.max_draft_tokens": 0}, "leave it at 8"),
        ({"rollout.temperature": 0.001}, "0.01 and above"),
        ({"model.load_in_4bit": True}, "--model.load_in_4bit false"),
        ({"rollout.server_url": "127.0.0.1:8000"}, "Fix: one such as http://127.0.0.1:8000"),
        ({"rollout.server_url": "ftp://127.0.0.1"}, "'ftp://127.0.0.1' is no address"),
        ({"rollout.server_url": "http://"}, "'http://' is no address"),
        ({"rollout.server_url": "http://host:port"}, "'http://host:port' is no address"),
        ({"rollout.server_url": "http://host:99999"}, "'http://host:99999' is no address"),
        ({"rollout.server_weights": ""}, "a folder, or leave it unset"),
        ({"rollout.server_timeout": 0.0}, "it must be above 0"),
        ({"rollout.num_slots": 4}, "--max-num-seqs of vllm serve"),
        ({"rollout.kv_gib": 4.0}, "--kv-cache-memory-bytes of vllm serve"),
        ({"rollout.kv_fraction": 0.5}, "--gpu-memory-utilization of vllm serve"),
        ({"rollout.graphs": False}, "--enforce-eager of vllm serve"),
        ({"rollout.decode_copy": "bfloat16"}, "--dtype of vllm serve"),
        ({"rollout.backend": "vllm", "rollout.server_url": "http://other:8000"}, "--rollout.backend vllm_server"),
        ({"rollout.backend": "engine", "rollout.server_weights": "/weights"}, "--rollout.backend vllm_server"),
        ({"rollout.backend": "hf", "rollout.server_timeout": 5.0}, "leave it at 1800"),
    ],
)
def test_options_that_a_vllm_server_cannot_serve_are_refused_with_the_way_out(options, way_out):
    with pytest.raises(ConfigError) as refused:
        check(config_with(**{"rollout.backend": "vllm_server", **options}))
    assert way_out in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"rollout.max_mismatch": 0.1, "rollout.prefill_tokens": 64}, {"rollout.temperature": 0.0},
        {"rollout.server_url": "https://[::1]:80/path", "rollout.server_weights": "/dev/shm/mine"},
        {"rollout.num_samples": 4, "rollout.server_timeout": 60.0},
    ],
)  # fmt: skip
def test_what_a_vllm_server_can_serve_is_taken(options):
    check(config_with(**{"rollout.backend": "vllm_server", **options}))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"rollout.max_mismatch": 0.1}, {"rollout.temperature": 0.0}, {"rollout.top_p": 0.9},
        {"rollout.temperature": 0.7, "rollout.top_k": 5}, {"rollout.decode_copy": "bfloat16"},
        {"rollout.num_samples": 4}, {"rollout.repetition_penalty": 1.2},
        {"rollout.kv_gib": 1.0, "rollout.num_slots": 4, "rollout.graphs": False},
    ],
)  # fmt: skip
def test_what_vllm_can_serve_is_taken(options):
    check(config_with(**{"rollout.backend": "vllm", **options}))
