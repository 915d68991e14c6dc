"""Steps of a fixed shape write what the ragged path writes, and neither read nor make anything on the host."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from toys import FAMILIES, ask, assert_same_but_for_ties, engine, make, tokens, with_adapter

from onpolicy_sdft.models.trace import no_trace
from onpolicy_sdft.rollout.attention import slot_attention_on
from onpolicy_sdft.rollout.backend import NO_RECORD, ignore_progress
from onpolicy_sdft.rollout.grid import GridCall, GridStep, OnTheDevice, has_hooks_anywhere
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.types import RecordOptions, SamplingParams

PARAMS = {
    "own": SamplingParams(),
    "greedy": SamplingParams(0.0),
    "filtered": SamplingParams(0.7, 20, 0.9),
    "penalised": SamplingParams(0.8, repetition_penalty=1.3),
}


def both(model, requests, params, record=NO_RECORD, **options):
    ragged = engine(model, **options).generate(requests, params, record=record)
    return ragged, engine(model, grid=True, **options).generate(requests, params, record=record)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("max_drafts", [0, 3])
@pytest.mark.few(3)
def test_the_grid_writes_what_the_ragged_path_writes(params, max_drafts):
    model = make("llama", torch.float64)
    ragged, grid = both(model, ask(9), params, max_draft_tokens=max_drafts)
    assert tokens(grid) == tokens(ragged)
    for mine, theirs in zip(grid, ragged, strict=True):
        assert mine.finish_reason == theirs.finish_reason
        for name in ("logprobs", "sampling_logprobs", "entropies"):
            assert getattr(mine, name) == pytest.approx(getattr(theirs, name), abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.few(3)
def test_every_family_is_decoded_in_a_grid_as_by_generate(family):
    model = make(family)
    grid = engine(model, grid=True).generate(ask(6), SamplingParams(0.0))
    theirs = HFBackend(model, (95,), 95, 6, True).generate(ask(6), SamplingParams(0.0))
    assert_same_but_for_ties(model, grid, theirs, SamplingParams(0.0))


@pytest.mark.parametrize(("sync_steps", "num_slots"), [(1, 5), (3, 1), (3, 9), (50, 3)])
@pytest.mark.few(1)
def test_when_the_host_looks_and_how_many_slots_there_are_changes_nothing(sync_steps, num_slots):
    model = with_adapter(make("qwen2", torch.float64))
    expected = engine(model).generate(ask(7), SamplingParams())
    one = engine(model, grid=True, num_slots=num_slots, sync_steps=sync_steps)
    for _ in range(2):
        assert tokens(one.generate(ask(7), SamplingParams())) == tokens(expected)
    assert one.stats.num_tokens == sum(map(len, tokens(expected)))


def test_what_is_recorded_is_the_same_and_its_buffers_stay_where_they_are():
    model, record = make("llama", torch.float64), RecordOptions(hidden=True, top_k=5)
    ragged, grid = both(model, ask(6), SamplingParams(), record)
    for mine, theirs in zip(grid, ragged, strict=True):
        torch.testing.assert_close(mine.hidden, theirs.hidden)
        assert torch.equal(mine.top.token_ids, theirs.top.token_ids)
        torch.testing.assert_close(mine.top.logprobs, theirs.top.logprobs)
    one = engine(model, grid=True)
    one.generate(ask(6), SamplingParams(), record=record)
    before = one._pool.addresses()
    one.generate(ask(6), SamplingParams(), record=record)
    assert one._pool.addresses() == before


@pytest.mark.slow
def test_steps_are_kept_between_calls_and_dropped_when_a_weight_or_a_buffer_moves():
    model = make("llama")
    one = engine(model, grid=True)
    one.generate(ask(6), SamplingParams())
    kept = dict(one.steps._steps)
    one.generate(ask(6), SamplingParams())
    assert one.steps._steps == kept
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.clone()
    one.generate(ask(6), SamplingParams())
    assert not set(one.steps._steps.values()) & set(kept.values())
    kept = dict(one.steps._steps)
    one.generate([replace(request, max_new_tokens=200) for request in ask(6)], SamplingParams())
    assert not set(one.steps._steps.values()) & set(kept.values())


def test_a_switch_of_adapters_and_a_failure_drop_the_steps():
    model = with_adapter(make("llama"))
    one = engine(model, grid=True)
    one.generate(ask(3), SamplingParams())
    kept = set(one.steps._steps.values())
    with model.disable_adapter():
        one.generate(ask(3), SamplingParams())
    assert kept
    assert not kept & set(one.steps._steps.values())

    def fail(advance):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.generate(ask(3), SamplingParams(), fail)
    assert not one.steps._steps


def test_a_bucket_holds_the_rows_and_never_more_than_there_are_slots():
    model = make("llama")
    for num_slots in (1, 2, 3, 5, 6, 7, 20):
        one = engine(model, grid=True, num_slots=num_slots)
        pool = one._make_pool(ask(num_slots), NO_RECORD)
        call = GridCall(one, model, pool, ask(num_slots), SamplingParams(), ignore_progress, NO_RECORD)
        for rows in range(1, num_slots + 1):
            size = len(call.step(rows, 0)._slots_B)
            assert rows <= size <= num_slots
            assert size in (1, 2, 4, 8, 16, num_slots)


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.add_(torch.tensor([1.0])),
        lambda x: x.to("meta"),  # as to or from the host
        lambda x: torch.unique(x),
        lambda x: x.masked_select(x > 0),
        lambda x: x.__setitem__(x > 0, x[:1]),
    ],
)
def test_what_a_capture_would_fail_on_is_found_out_before_it(reads):
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="inside a decode step"), OnTheDevice():
        reads(x)


def test_nothing_keeps_slots_alive_that_an_engine_has_given_back():
    model = make("llama")
    one = engine(model, grid=True)
    one.generate(ask(3), SamplingParams())
    pool = weakref.ref(one._pool)
    gc.disable()
    try:
        assert one.release()
        assert pool() is None
    finally:
        gc.enable()


def test_hooks_that_look_at_calls_are_told_from_those_of_gradient_checkpointing():
    model = make("llama")
    assert not has_hooks_anywhere(model)
    model.enable_input_require_grads()
    assert not has_hooks_anywhere(model)
    model.model.embed_tokens.register_forward_hook(lambda module, given, out: None)
    assert has_hooks_anywhere(model)


def test_fewer_requests_use_the_slots_that_are_there():
    model = make("llama")
    one = engine(model, grid=True, num_slots=None)
    one.generate(ask(6), SamplingParams())
    pool, steps = one._pool, dict(one.steps._steps)
    few = one.generate(ask(6)[:2], SamplingParams(), record=RecordOptions(hidden=True))
    assert one._pool is pool
    assert steps.items() <= one.steps._steps.items()
    assert tokens(few) == tokens(engine(model).generate(ask(6)[:2], SamplingParams()))


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("record", [NO_RECORD, RecordOptions(hidden=True, top_k=4)], ids=["nothing", "recorded"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "mistral"])
@pytest.mark.few(10)
def test_a_step_reads_nothing_on_the_host_and_makes_nothing_there(family, record, params):
    model, requests = make(family), ask(3)
    one = engine(model, grid=True)
    with no_trace(model), one.weights.open(), slot_attention_on(model):
        pool = one._make_pool(requests, record)
        call = GridCall(one, model, pool, requests, params, ignore_progress, record)
        call._admit()
        step = GridStep(call, 4, 3)
        step.load(call.scheduler.live)
        step.run()
        with OnTheDevice():
            step.run()
