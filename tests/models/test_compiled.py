"""Compiled layers learn what the layers as they are written learn, and nobody else meets them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from onpolicy_sdft.data.collate import collate
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.models.compiled import compile_layers, uncompiled
from onpolicy_sdft.models.packed import attention_of
from onpolicy_sdft.models.policy import Policy
from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.objectives.inputs import LossInputs
from onpolicy_sdft.objectives.objective import Objective
from onpolicy_sdft.types import TrainingRow

ROWS = [TrainingRow(tuple(range(2, 4 + n)), tuple(range(5, 9 + n))) for n in range(4)]


def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def learned(policy, batch):
    policy.zero_grad()
    with attention_of(batch, policy):
        loss, _ = policy(batch, Objective(), LossInputs(batch.weights, batch.plain))
        loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in policy.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_loss_and_gradients_are_those_of_the_layers_as_they_are_written(packed):
    torch._dynamo.reset()
    model = tiny()
    plain = copy.deepcopy(model)
    names = list(model.state_dict())
    assert compile_layers(model, "eager") == 2
    assert list(model.state_dict()) == names
    for rows in (ROWS, ROWS[:2], ROWS[1:]):  # of other sizes
        batch = collate(rows, 0, packed=packed)
        (loss, grads), (own_loss, own_grads) = learned(Policy(model), batch), learned(Policy(plain), batch)
        torch.testing.assert_close(loss, own_loss)
        torch.testing.assert_close(grads, own_grads)


def test_rollouts_and_scoring_run_the_layers_as_they_are_written():
    model = tiny()
    compile_layers(model, "eager")
    calls = {layer: layer._compiled_call_impl for layer in model.model.layers}
    with no_trace(model):
        assert not any(layer._compiled_call_impl for layer in calls)
    with pytest.raises(RuntimeError, match="inside"), uncompiled(model):
        raise RuntimeError("inside")
    assert all(layer._compiled_call_impl is call is not None for layer, call in calls.items())


def test_a_model_without_a_list_of_layers_is_refused():
    model = tiny()
    model.model.layers = nn.ModuleDict()
    with pytest.raises(ConfigError, match="no list of layers"):
        compile_layers(model)
