"""The teacher's weights: live, averaged, of the start of the stage, of the seed."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from onpolicy_sdft.data.collate import collate
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.weights import PolicyWeights
from onpolicy_sdft.types import TrainingRow

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
BATCH = collate([TrainingRow((1, 2, 3), (4, 5, 6, 7))], 0)


@pytest.fixture(params=["full", "lora"])
def model(request, tiny_model):
    made = tiny_model()
    if request.param == "full":
        return made
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(made, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def move(model, seed, size=0.05):
    """Change every trainable weight, as an optimizer step does."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(model).values():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def taught(weights, kind):
    with weights.showing(kind):
        return logits(weights.model)


def test_base_is_the_model_as_it_started_whatever_was_trained(model):
    seed = logits(model)
    weights = PolicyWeights(model, ("base",))
    move(model, 1)
    assert not torch.allclose(logits(model), seed)
    torch.testing.assert_close(taught(weights, "base"), seed)


def test_stage_is_what_the_stage_before_left_and_not_the_seed(model):
    """Trap T1: a teacher of the second task that is loaded again would be the seed."""
    weights = PolicyWeights(model, ("stage", "base"))
    seed = logits(model)
    torch.testing.assert_close(taught(weights, "stage"), seed)
    move(model, 1)
    first_task = logits(model)
    weights.start_stage()
    move(model, 2)
    torch.testing.assert_close(taught(weights, "stage"), first_task)
    torch.testing.assert_close(taught(weights, "base"), seed)


@pytest.mark.parametrize(("half_life", "as_kind"), [(0.0, "live"), (math.inf, "base")])
def test_an_average_at_its_ends_is_the_live_weights_or_those_of_the_start(model, half_life, as_kind):
    seed = logits(model)
    weights = PolicyWeights(model, ("ema",), half_life)
    for step in range(3):
        move(model, step)
        weights.follow(1)
    torch.testing.assert_close(taught(weights, "ema"), logits(model) if as_kind == "live" else seed)


def test_the_average_has_the_half_life_it_says_and_starts_from_the_student(model):
    """Traps T3 and T4: an adapter's average that starts from zeros lags; one in bfloat16 stands still."""
    start = {name: p.detach().clone() for name, p in trainable(model).items()}
    weights = PolicyWeights(model, ("ema",), half_life=5)
    for name, kept in weights.copies["ema"].items():
        assert torch.equal(kept, start[name])
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(1e-4)
    for _ in range(5):
        weights.follow(1)
    for name, kept in weights.copies["ema"].items():
        torch.testing.assert_close(kept, start[name] + 0.5e-4, rtol=0, atol=2e-7)


def test_the_average_of_bfloat16_weights_is_float32_and_follows_the_closed_form(tiny_model):
    model = tiny_model(torch.bfloat16)
    weights = PolicyWeights(model, ("ema",), half_life=30)
    name, parameter = next(iter(trainable(model).items()))
    expected = parameter.detach().double()
    for step in range(60):
        with torch.no_grad():
            parameter.add_(2.0 ** -(7 + step % 3))
        expected += weights.rate * (parameter.detach().double() - expected)
        weights.follow(1)
    assert weights.copies["ema"][name].dtype == torch.float32
    torch.testing.assert_close(weights.copies["ema"][name].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_copy_is_a_copy_and_a_swap_leaves_nothing_behind(model):
    weights = PolicyWeights(model, ("ema", "stage"), half_life=3)
    move(model, 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="inside"), weights.showing("ema"):
        raise RuntimeError("inside")
    with weights.showing("stage"):
        pass
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.requires_grad for p in trainable(model).values())


def test_scoring_gives_hidden_states_and_a_head_of_those_weights_without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    weights = PolicyWeights(model, ("ema",), half_life=math.inf)
    model.eval()
    expected = logits(model)[0, 2:6]
    move(model, 3)
    model.train()
    with weights.showing("ema"):
        hidden, head = weights.score(BATCH), weights.head()
    torch.testing.assert_close(head.logits(hidden), expected)
    assert not hidden.requires_grad
    assert not head.weight_VD.requires_grad
    assert model.training
    assert all(module.training for module in model.modules())


def test_a_lora_base_costs_no_copy_and_other_kinds_copy_the_adapter_only(model):
    adapter = sum(p.nbytes for p in trainable(model).values())
    is_lora = inner_model(model) is not model
    assert PolicyWeights(model).num_bytes == 0
    assert PolicyWeights(model, ("base",)).num_bytes == (0 if is_lora else adapter)
    assert PolicyWeights(model, ("ema",)).num_bytes == adapter


def test_what_a_checkpoint_holds_brings_the_teacher_back(model):
    weights = PolicyWeights(model, ("ema", "stage"), half_life=3)
    assert set(weights.state()) == {"ema"}, "the first stage is what every new start begins with"
    move(model, 1)
    weights.follow(1)
    weights.start_stage()
    move(model, 2)
    saved = {kind: {n: t.clone() for n, t in copy.items()} for kind, copy in weights.state().items()}
    assert set(saved) == {"ema", "stage"}
    expected = taught(weights, "ema"), taught(weights, "stage")
    again = PolicyWeights(model, ("ema", "stage"), half_life=3)
    again.restore(saved)
    torch.testing.assert_close(taught(again, "ema"), expected[0])
    torch.testing.assert_close(taught(again, "stage"), expected[1])
    assert set(again.state()) == {"ema", "stage"}
