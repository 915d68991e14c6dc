"""What the model says of texts that another program wrote is what its own backend recorded of them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from onpolicy_sdft.rollout.backend import RolloutStats
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.rollout.rescoring import Rescorer, Written
from onpolicy_sdft.rollout.sampling import Vocabulary
from onpolicy_sdft.types import NoiseKey, RecordOptions, RolloutRequest, SamplingParams

TERMINATOR = 257
PROMPTS = [(1, 2, 3), (4, 5), (6, 7, 8, 9, 10, 11), (12,), (13, 14, 15)]
REQUESTS = [RolloutRequest(prompt, NoiseKey(0, 0, f"e{i}"), 12) for i, prompt in enumerate(PROMPTS)]


def texts(rollouts, params):
    return [
        Written(request, params, r.token_ids, r.sampling_logprobs, r.finish_reason == "stop")
        for request, r in zip(REQUESTS, rollouts, strict=True)
    ]


@pytest.mark.parametrize("batch_tokens", [1, 64, 10_000])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(), SamplingParams(0.8, 20, 0.9), SamplingParams(1.3, min_p=0.05),
        SamplingParams(0.7, repetition_penalty=1.4),
    ],
)  # fmt: skip
@pytest.mark.few(5)
def test_rescored_texts_are_the_rollouts_of_generate(tiny_model, params, batch_tokens):
    model, record = tiny_model(torch.float64).eval(), RecordOptions(hidden=True, top_k=3)
    rollouts = HFBackend(model, (TERMINATOR,), TERMINATOR, 1, vocabulary=Vocabulary(260)).generate(
        REQUESTS, params, record=record
    )
    with torch.no_grad():
        found = list(Rescorer(model, Vocabulary(260), batch_tokens)(texts(rollouts, params), record))
    assert sorted(place for place, _, _ in found) == list(range(len(PROMPTS)))
    for place, again, differences in found:
        own = rollouts[place]
        assert (again.key, again.token_ids, again.finish_reason) == (own.key, own.token_ids, own.finish_reason)
        for name in ("logprobs", "sampling_logprobs", "entropies"):
            assert getattr(again, name) == pytest.approx(getattr(own, name), abs=1e-5)  # generate's are of float32
        torch.testing.assert_close(again.hidden, own.hidden)
        torch.testing.assert_close(again.top.logprobs.float(), own.top.logprobs.float())
        assert torch.equal(again.top.token_ids, own.top.token_ids)
        assert differences == pytest.approx([0.0] * len(own.token_ids), abs=1e-5)


def test_a_token_beyond_a_filter_is_compared_as_if_it_were_kept(tiny_model):
    """A writer in another precision keeps a token at the edge of a filter that the model itself would not."""
    model, params = tiny_model(torch.float64).eval(), SamplingParams(top_k=1)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
        second = int(logits.topk(2).indices[1])
        text = Written(REQUESTS[0], params, (second,), (-0.7,), False)
        ((_, rollout, (difference,)),) = Rescorer(model, None, 64)([text], RecordOptions())
    own = torch.log_softmax(logits.topk(2).values, -1)[1].item()
    assert difference == pytest.approx(-0.7 - own)
    assert rollout.sampling_logprobs == (-0.7,)


def test_a_greedy_text_was_drawn_with_certainty(tiny_model):
    model, params = tiny_model(torch.float64).eval(), SamplingParams(temperature=0.0)
    rollouts = HFBackend(model, (TERMINATOR,), TERMINATOR, 1).generate(REQUESTS, params)
    asked = [
        dataclasses.replace(t, logprobs=r.logprobs) for t, r in zip(texts(rollouts, params), rollouts, strict=True)
    ]
    with torch.no_grad():
        for place, again, differences in Rescorer(model, None, 64)(asked, RecordOptions()):
            assert again.sampling_logprobs == rollouts[place].sampling_logprobs
            assert differences == pytest.approx([0.0] * len(differences), abs=1e-5)


def test_rates_of_several_calls_are_of_their_sums():
    total = RolloutStats()
    total.add(RolloutStats(num_tokens=30, num_slots=2, num_decode_forwards=10, num_decode_rows=20, num_decode_slots=20,
                           num_drafted_tokens=10, num_accepted_tokens=9, total_seconds=1.0))  # fmt: skip
    total.add(RolloutStats(num_tokens=10, num_slots=4, num_decode_forwards=10, num_decode_rows=10, num_decode_slots=40,
                           num_drafted_tokens=30, num_accepted_tokens=1, total_seconds=3.0))  # fmt: skip
    figures = total.figures()
    assert (figures["rollout/num_tokens"], figures["time/sampling_seconds"]) == (40, 4.0)
    assert (figures["rollout/accept_rate"], figures["rollout/drafted_rate"]) == (10 / 40, 40 / 40)
    assert (figures["rollout/num_slots"], figures["rollout/slot_occupancy"]) == (4, 30 / 60)
    assert figures["rollout/tokens_per_forward"] == 2


def test_mismatch_is_a_mean_over_all_tokens_and_the_largest():
    stats = RolloutStats(num_tokens=3)
    assert "rollout/mismatch" not in stats.figures()
    stats.add_mismatch((0.1, -0.3))
    stats.add_mismatch((0.2,))
    figures = stats.figures()
    assert (figures["rollout/mismatch"], figures["rollout/mismatch_max"]) == pytest.approx((0.2, 0.3))
    stats.add_mismatch((math.nan,))
    assert stats.mean_mismatch == math.inf
