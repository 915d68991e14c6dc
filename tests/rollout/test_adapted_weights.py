"""Whatever is trained beside plain adapters is in what both backends write, and out of it while adapters are off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_engine import plain_logprobs
from test_weights import sha256
from toys import END, ask, assert_same_but_for_ties, engine, logits, make, tokens

from onpolicy_sdft.config.schema import LoraConfig, ModelConfig
from onpolicy_sdft.models.lora import inner_model, prepare_trainable
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.types import SamplingParams

PARAMS = SamplingParams()
ROWS = list(range(0, 60, 2))
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("llama", {"use_dora": True}),
    "dora with biases": ("qwen2", {"use_dora": True, "use_rslora": True}),
    "both ends": ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "shared ends": ("gemma3", {"modules_to_save": ["embed_tokens"]}),
    "norms and products": (
        "qwen2",
        {"modules_to_save": ["norm", "down_proj"], "target_modules": ["q_proj", "up_proj"]},
    ),
    "experts": ("gpt_oss", {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj"]}),
    "shared rows": ("gemma3", {"trainable_token_indices": ROWS}),
    "rows of both ends": ("llama", {"trainable_token_indices": {"embed_tokens": ROWS, "lm_head": [1, END]}}),
    "all at once": ("llama", {"use_dora": True, "trainable_token_indices": ROWS, "modules_to_save": ["lm_head"]}),
}


def adapted(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model with random adapters, copies and rows."""
    family, options = KINDS[kind]
    model = prepare_trainable(make(family, dtype), LoraConfig(r=4, **options), ModelConfig(), 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            parameter.data += 0.1 * noise.to(parameter.dtype)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "merge"),
    [
        pytest.param(
            kind, merge, id=f"{kind}, {'merged' if merge else 'unmerged'}",
            marks=[] if kind in ("experts", "all at once") else pytest.mark.slow,
        )
        for kind in KINDS
        for merge in (True, False)
    ],
)  # fmt: skip
@pytest.mark.few(1)
def test_both_backends_write_what_the_adapted_model_says(kind, merge):
    model = adapted(kind)
    before, own = sha256(model), logits(model)
    theirs = HFBackend(model, (END,), END, 4, merge_adapter=merge).generate(ask(), PARAMS)
    ours = engine(model, weights=LocalWeights(model, merge)).generate(ask(), PARAMS)
    assert_same_but_for_ties(inner_model(model), ours, theirs, PARAMS)
    for rollout in (*ours[:3], *theirs[:3]):
        plain = plain_logprobs(inner_model(model), rollout)
        torch.testing.assert_close(torch.tensor(rollout.logprobs), plain, atol=2e-4, rtol=1e-4)
    with model.disable_adapter():
        off = engine(model).generate(ask(), PARAMS)
    fresh = make(KINDS[kind][0])
    assert_same_but_for_ties(fresh, off, engine(fresh).generate(ask(), PARAMS), PARAMS)
    assert tokens(off) != tokens(ours)
    assert sha256(model) == before
    assert torch.equal(logits(model), own)


@pytest.mark.parametrize("copy", ["none", "packed", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.few(12)
def test_every_copy_of_the_weights_has_them_and_leaves_no_trace(kind, copy):
    model = adapted(kind)
    own, trained = logits(model), [p.requires_grad for p in model.parameters()]
    pointers = [p.data_ptr() for p in model.parameters()]
    with LocalWeights(model, True, copy).open():
        inside = logits(model).float()
    far = (inside - own).abs()
    assert far.mean() < 0.15 * own.std() if copy == "bfloat16" else far.max() < 5e-4
    assert torch.equal(logits(model), own)
    assert pointers == [p.data_ptr() for p in model.parameters()]
    assert trained == [p.requires_grad for p in model.parameters()]


def test_steps_of_a_fixed_shape_write_the_same():
    model = adapted("all at once")
    ragged, fixed = (engine(model, grid=grid).generate(ask(), PARAMS) for grid in (False, True))
    assert_same_but_for_ties(inner_model(model), ragged, fixed, PARAMS)


@pytest.mark.parametrize("kind", ["dora", "shared rows"])
def test_float32_parts_over_a_bfloat16_base_are_in_what_is_decoded(kind):
    model = adapted(kind, torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    own = logits(model).float()
    with LocalWeights(model, True, "none").open():
        inside = logits(model).float()
    assert (inside - own).abs().mean() < 0.1 * own.std()
    with model.disable_adapter():
        assert (logits(model).float() - own).abs().mean() > 0.1 * own.std()


def test_an_optimizer_step_later_the_new_rows_and_lengths_are_read():
    model = adapted("all at once")
    kept = engine(model)
    kept.generate(ask(), PARAMS)
    for name, parameter in model.named_parameters():
        if "magnitude" in name or "tokens_delta" in name or "modules_to_save" in name:
            parameter.data *= 1.5
    later, fresh = (each.generate(ask(), PARAMS) for each in (kept, engine(model)))
    assert_same_but_for_ties(inner_model(model), later, fresh, PARAMS)
