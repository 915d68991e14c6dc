from __future__ import annotations

from typing import Any

import pytest
import torch

from onpolicy_sdft.models.weights import PolicyWeights
from onpolicy_sdft.train.pairing import Pairing
from onpolicy_sdft.train.scoring import Scorer

TEXTS = [((1, 2, 3), (4, 5)), ((9,), (8, 7, 6, 5, 4)), ((1, 2, 3, 4, 5, 6), (7,)), ((3, 3), ()), ((2, 1), (4, 4, 4))]


def plainly(model: Any, prompt: tuple[int, ...], target: tuple[int, ...]) -> list[float]:
    ids = torch.tensor([[*prompt, *target]])
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(target)]


@pytest.mark.parametrize("micro_batch_tokens", [4, 10, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_scores_are_those_of_a_plain_forward_of_each_text(tiny_model, micro_batch_tokens, packed):
    model = tiny_model(torch.float64)
    found = Scorer(PolicyWeights(model), Pairing(micro_batch_tokens, 0, packed=packed), "cpu")(TEXTS)
    for (prompt, target), scores in zip(TEXTS, found, strict=True):
        assert scores == pytest.approx(plainly(model, prompt, target), abs=1e-9)


def test_scoring_nothing_is_nothing(tiny_model):
    assert Scorer(PolicyWeights(tiny_model()), Pairing(10, 0), "cpu")([]) == []


def test_scoring_leaves_no_trace(tiny_model):
    model = tiny_model()
    model.train()
    Scorer(PolicyWeights(model), Pairing(10, 0), "cpu")(TEXTS)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
