from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import ask, engine, make, tokens

from onpolicy_sdft.rollout import call as calls
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.rollout.joining import LAG, Asked, Joining
from onpolicy_sdft.types import SamplingParams


class Again:
    """Asks for every third completion once more under another key, in the order in which they ended."""

    def __init__(self, requests, grow=0):
        self.requests, self.grow = list(requests), grow
        self.num_own = len(requests)
        self.order, self.found, self.looked, self.asked_at = [], {}, 0, []

    def ended(self, index, rollout):
        assert index not in self.found, "a completion is reported once"
        self.order.append(index)
        self.found[index] = rollout

    def more(self, num_ended):
        self.asked_at.append(num_ended)
        ended, self.looked = self.order[self.looked : num_ended], num_ended
        chosen = [self.requests[i] for i in ended if i < self.num_own and i % 3 == 0]
        again = [
            replace(one, key=replace(one.key, attempt=1), prompt_token_ids=one.prompt_token_ids + (7,) * self.grow)
            for one in chosen
        ]
        self.requests += again
        return again


def generate(model, listener, requests, params, **options):
    one = engine(model, **options)
    return one, one.generate(requests, params, listener=listener)


@pytest.mark.parametrize("options", [{}, {"num_slots": 2, "max_draft_tokens": 0}, {"grid": True, "sync_steps": 3}])
@pytest.mark.few(1)
def test_what_joins_a_running_call_is_written_as_in_a_call_of_its_own(options):
    model, params, requests = make("llama", torch.float64), SamplingParams(0.9), ask(9)
    listener = Again(requests)
    one, written = generate(model, listener, requests, params, **options)
    assert len(listener.requests) == 12
    alone = engine(model, **options).generate(listener.requests, params)
    assert tokens(written) == tokens(alone)
    assert [rollout.key for rollout in written] == [request.key for request in listener.requests]
    assert {index: rollout.token_ids for index, rollout in listener.found.items()} == dict(enumerate(tokens(written)))
    assert one.stats.num_prompt_tokens == sum(len(request.prompt_token_ids) for request in listener.requests)


def test_a_request_that_the_slots_cannot_hold_is_written_after_the_call():
    model, params, requests = make("llama", torch.float64), SamplingParams(), ask(6)
    listener = Again(requests, grow=150)
    _, written = generate(model, listener, requests, params)
    assert len(written) == 8
    assert tokens(written) == tokens(engine(model).generate(listener.requests, params))


@pytest.mark.parametrize("after", [3, 20])
@pytest.mark.few(1)
def test_running_out_of_memory_reports_no_completion_twice_and_loses_no_request(monkeypatch, after):
    model, params, requests = make("llama", torch.float64), SamplingParams(0.9), ask(9)
    left = [after]
    decode = calls.Call._decode

    def fails_once(self):
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("out of memory")
        decode(self)

    monkeypatch.setattr(calls.Call, "_decode", fails_once)
    listener = Again(requests)
    one, written = generate(model, listener, requests, params)
    assert one.stats.num_out_of_memory == 1
    assert len(listener.found) == len(written) == 12
    assert tokens(written) == tokens(engine(model).generate(listener.requests, params))


def test_transformers_generate_reports_each_completion_and_never_asks():
    model, requests = make("llama"), ask(5, limit=6)
    listener = Again(requests)
    written = HFBackend(model, (95,), 95, 2).generate(requests, SamplingParams(), listener=listener)
    assert {index: rollout.token_ids for index, rollout in listener.found.items()} == dict(enumerate(tokens(written)))
    assert listener.asked_at == []


def test_a_listener_is_asked_a_fixed_number_of_forwards_after_the_end():
    listener = Again(())
    joining = Joining(listener)
    joining.ended(0, None, 5)
    joining.ended(1, None, 9)
    assert joining.more(5 + LAG - 1) == []
    assert listener.asked_at == []
    joining.more(5 + LAG)
    joining.more(8 + LAG)
    joining.more(None)
    joining.more(None)
    assert listener.asked_at == [1, 2]


def test_requests_of_a_second_call_keep_their_numbers():
    requests = ask(3)
    listener = Again(requests)
    asked = Asked(requests, listener)
    assert asked.left() == requests
    asked.ended(1, "b")
    assert asked.left() == [requests[0], requests[2]]
    asked.ended(1, "c")
    asked.ended(0, "a")
    assert listener.order == [1, 2, 0]
    assert len(asked.more(2)) == 1, "of three that ended in all, the one whose number is 0"
    assert asked.left() == listener.requests[3:]
