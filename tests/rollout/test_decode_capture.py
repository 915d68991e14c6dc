"""The decode step can be captured: one graph, no value read on the host, every buffer where it was."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from toys import END, ask, engine, make, tokens

from onpolicy_sdft.rollout.attention import slot_attention_on
from onpolicy_sdft.rollout.backend import NO_LISTENER, NO_RECORD, ignore_progress
from onpolicy_sdft.rollout.call import Call
from onpolicy_sdft.rollout.decode import grid_step
from onpolicy_sdft.rollout.joining import Asked
from onpolicy_sdft.types import SamplingParams


def prepared(model, requests, params, max_drafts):
    """A call that has not begun, with the attention that runs on every device."""
    one = engine(model, num_slots=len(requests), max_draft_tokens=max_drafts, attention="torch")
    pool = one._make_pool(requests, NO_RECORD)
    asked = Asked(requests, NO_LISTENER)
    return Call(one, model, pool, asked.left(), params, ignore_progress, NO_RECORD, asked), asked


def addresses(call):
    texts = [v.data_ptr() for v in vars(call.texts).values() if isinstance(v, torch.Tensor)]
    return texts + [t.data_ptr() for t in (*call.pool.cache.keys, *call.pool.cache.values)]


PARAMS = {"own": SamplingParams(), "greedy": SamplingParams(0.0), "filtered": SamplingParams(0.7, 20, 0.9)}
#: Each number of drafts is compiled once; the other pairs, which take seconds each, are slow.
COMPILED = {("own", 0), ("filtered", 3)}


@pytest.mark.parametrize(
    ("name", "max_drafts", "compiled"),
    [
        pytest.param(*pair, compiled, marks=() if not compiled or pair in COMPILED else (pytest.mark.slow,))
        for compiled in (False, True)
        for pair in itertools.product(PARAMS, (0, 3))
    ],
)
@pytest.mark.few(2)
def test_a_captured_step_writes_what_the_engine_writes_and_moves_no_buffer(name, max_drafts, compiled):
    model, params = make("llama", torch.float64), PARAMS[name]
    requests = [replace(request, max_new_tokens=18) for request in ask(6)]
    expected = engine(model, num_slots=6, max_draft_tokens=max_drafts).generate(requests, params)
    torch._dynamo.reset()
    step = torch.compile(grid_step, fullgraph=True, backend="eager") if compiled else grid_step
    call, asked = prepared(model, requests, params, max_drafts)
    with torch.no_grad(), slot_attention_on(model):
        call._admit()
        where = addresses(call)
        # A bucket of 8 rows: six slots and two of padding, which write to the padding slot.
        slots = torch.tensor([*range(6), 6, 6])
        for _ in range(17):
            live = torch.tensor([s if s in call.scheduler.live else 6 for s in range(6)] + [6, 6])
            slots.copy_(live)
            if not call.scheduler.live:
                break
            settled, _ = step(
                model, call.texts, call.attention, call.pool.batch_params, call.stop_token_ids_T, slots, max_drafts
            )
            kept = type(settled)(settled.kept_B[:6], settled.accepted_B[:6], settled.done_B[:6])
            rows = [row for row in range(6) if live[row] < 6]
            call._collect(rows, type(settled)(kept.kept_B[rows], kept.accepted_B[rows], kept.done_B[rows]))
        assert addresses(call) == where
    assert tokens(asked.rollouts()) == tokens(expected)
    assert END not in {token for text in tokens(asked.rollouts()) for token in text[:-1]}
