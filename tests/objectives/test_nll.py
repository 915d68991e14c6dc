from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.models.policy import Head
from onpolicy_sdft.objectives.nll import nll


def inputs(dtype=torch.float64, n=13, d=6, v=31, **head):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, dtype=dtype, generator=generator, requires_grad=True)
    weight = torch.randn(v, d, dtype=dtype, generator=generator, requires_grad=True)
    labels = torch.randint(0, v, (n,), generator=generator)
    return hidden, Head(weight, **head), labels


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("head", [{}, {"scale": 0.3}, {"softcap": 2.0}, {"scale": 0.5, "softcap": 3.0}])
def test_value_and_gradient_equal_plain_cross_entropy(chunk, head):
    hidden, layer, labels = inputs(**head)
    ours = nll(hidden, layer, labels, chunk_tokens=chunk)
    ours.backward()
    gradients = hidden.grad.clone(), layer.weight_VD.grad.clone()
    hidden.grad = layer.weight_VD.grad = None
    theirs = F.cross_entropy(layer.logits(hidden), labels, reduction="sum")
    theirs.backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients[0], hidden.grad)
    torch.testing.assert_close(gradients[1], layer.weight_VD.grad)


def test_a_bias_is_part_of_the_logits():
    hidden, layer, labels = inputs()
    bias = torch.randn(31, dtype=torch.float64)
    with_bias = nll(hidden, Head(layer.weight_VD, bias), labels, chunk_tokens=5)
    expected = F.cross_entropy(hidden @ layer.weight_VD.T + bias, labels, reduction="sum")
    torch.testing.assert_close(with_bias, expected)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy")
def test_torchs_kernel_gives_the_same_value_and_gradient():
    hidden, layer, labels = inputs(torch.float32, n=64)
    nll(hidden, layer, labels, kernel="torch", chunk_tokens=16).backward()
    theirs = hidden.grad.clone(), layer.weight_VD.grad.clone()
    hidden.grad = layer.weight_VD.grad = None
    nll(hidden, layer, labels, chunk_tokens=16).backward()
    torch.testing.assert_close(theirs[0], hidden.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs[1], layer.weight_VD.grad, atol=1e-4, rtol=1e-4)


def test_torchs_kernel_refuses_a_head_that_is_not_linear():
    hidden, layer, labels = inputs(softcap=2.0)
    with pytest.raises(ConfigError, match="objective.kernel chunks"):
        nll(hidden, layer, labels, kernel="torch")


def test_the_loss_is_float32_for_bfloat16_input():
    hidden, layer, labels = inputs(torch.bfloat16)
    assert nll(hidden, layer, labels, chunk_tokens=4).dtype == torch.float32


def test_no_tokens_give_a_zero_that_reaches_every_input():
    hidden, layer, labels = inputs()
    loss = nll(hidden[:0], layer, labels[:0])
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None
    assert layer.weight_VD.grad is not None
    assert not hidden.grad.any()


def test_no_more_than_a_chunk_of_logits_is_alive_in_the_forward(monkeypatch):
    seen = []
    hidden, layer, labels = inputs(n=100)
    logits = Head.logits

    def spy(self, chunk):
        seen.append(len(chunk))
        return logits(self, chunk)

    monkeypatch.setattr(Head, "logits", spy)
    nll(hidden, layer, labels, chunk_tokens=32).backward()
    assert max(seen) == 32
    assert sum(seen) == 200, "each chunk is computed in the forward and again in the backward"
