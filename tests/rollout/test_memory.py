from __future__ import annotations

from functools import partial

import pytest
import torch
from toys import END, ask, engine, make, tokens

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.machine import free_memory
from onpolicy_sdft.rollout import memory
from onpolicy_sdft.rollout.engine import EngineOptions, RolloutEngine
from onpolicy_sdft.rollout.memory import Budget, choose_num_slots, kv_budget
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.types import SamplingParams

CPU = torch.device("cpu")


def test_a_budget_is_what_was_asked_for_or_a_fraction_of_what_is_free():
    assert kv_budget(0.5, 0.9, CPU).num_bytes == 2**29
    half, all_of_it = kv_budget(None, 0.25, CPU), kv_budget(None, 0.5, CPU)
    assert 0 < half.num_bytes < all_of_it.num_bytes
    assert "iB free" in half.origin


VERSIONS = {
    "1": ("4:memory:/box\n", "memory/box", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    "2": ("0::/box\n", "box", "memory.max", "memory.current"),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_budget_within_a_control_group_is_of_what_the_group_has_left(tmp_path, monkeypatch, version):
    line, place, limit, used = VERSIONS[version]
    (tmp_path / "cgroup").write_text(line)
    (tmp_path / place).mkdir(parents=True)
    for name, value in {limit: 512 * 2**20, used: 256 * 2**20, "memory.stat": f"inactive_file {64 * 2**20}"}.items():
        (tmp_path / place / name).write_text(f"{value}\n")
    monkeypatch.setattr(memory, "free_memory", partial(free_memory, tmp_path / "cgroup", tmp_path))
    budget = kv_budget(None, 0.5, CPU)
    assert budget.num_bytes == 160 * 2**20
    assert budget.origin == (
        f"rollout.kv_fraction=0.5 of 320.00 MiB free below the limit of 0.50 GiB in {tmp_path / place}"
    )
    with pytest.raises(ConfigError, match="below the limit of 0.50 GiB in"):
        choose_num_slots(None, 1, 2**20, 1024, budget, CPU)


@pytest.mark.parametrize(
    ("asked", "num_requests", "budget", "expected"),
    [(None, 300, 10**9, 128), (None, 5, 10**9, 5), (7, 100, 10**9, 7), (7, 100, 3500, 3), (200, 300, 10**9, 200)],
)
def test_slots_are_what_pays_at_most_what_fits_and_what_is_needed(asked, num_requests, budget, expected):
    assert choose_num_slots(asked, num_requests, 100, 10, Budget(budget, "here"), CPU) == expected


def test_a_budget_too_small_for_one_request_is_refused_with_the_numbers():
    model = make("llama")
    one = engine(model, kv_gib=1e-5)
    with pytest.raises(
        ConfigError, match=r"One rollout of 128 positions needs 0\.05 MiB .* \(384 bytes .* 0\.01 MiB may"
    ):
        one.generate(ask(), SamplingParams())


def test_too_little_memory_for_all_defers_requests_and_loses_none():
    model = make("llama", torch.float64)
    plenty = engine(model, num_slots=None).generate(ask(12), SamplingParams())
    one = engine(model, num_slots=None, kv_gib=2.5 * 128 * 768 / 2**30)
    assert tokens(one.generate(ask(12), SamplingParams())) == tokens(plenty)
    assert one.stats.num_slots == 2


def test_slots_grow_to_what_was_ever_needed_and_are_announced_once(logged):
    model = make("llama")
    one = RolloutEngine(model, (END,), LocalWeights(model), EngineOptions(num_slots=4, deterministic=True))
    short, long = ask(4, limit=9), ask(4, limit=90)
    for requests in (short, long, short, long):
        one.generate(requests, SamplingParams())
    kept = one._pool
    one.generate(short, SamplingParams())
    assert one._pool is kept
    assert len(logged) == 1


def test_memory_that_cannot_be_had_halves_the_slots_and_says_so(monkeypatch, logged):
    import onpolicy_sdft.rollout.pool as module

    real = module.SlotCache

    def small(shapes, num_slots, *rest):
        if num_slots > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(shapes, num_slots, *rest)

    monkeypatch.setattr(module, "SlotCache", small)
    model = make("llama", torch.float64)
    options = EngineOptions(num_slots=8, deterministic=True)
    one = RolloutEngine(model, (END,), LocalWeights(model), options)
    assert tokens(one.generate(ask(), SamplingParams())) == tokens(engine(model).generate(ask(), SamplingParams()))
    assert one.stats.num_slots == 2
    assert "8 slots could not be allocated, trying 4" in logged[0]


def test_memory_that_runs_out_on_the_way_halves_the_slots_and_loses_nothing(monkeypatch, logged):
    import onpolicy_sdft.rollout.engine as module

    model = make("llama", torch.float64)
    expected = tokens(engine(model).generate(ask(9), SamplingParams()))
    one = RolloutEngine(model, (END,), LocalWeights(model), EngineOptions(num_slots=8, deterministic=True))
    decode, calls = module.Call._decode, []

    def runs_out(self):
        calls.append(self.pool.num_slots)
        if self.pool.num_slots > 2 and calls.count(self.pool.num_slots) > 3:
            raise torch.OutOfMemoryError("out of memory")
        decode(self)

    monkeypatch.setattr(module.Call, "_decode", runs_out)
    assert tokens(one.generate(ask(9), SamplingParams())) == expected
    assert one.stats.num_out_of_memory == 2
    assert "going on with 4" in logged[-2]
    assert "going on with 2" in logged[-1]
    monkeypatch.setattr(module.Call, "_decode", lambda self: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(torch.OutOfMemoryError):
        engine(model, num_slots=1).generate(ask(2), SamplingParams())


GPU, GIB = torch.device("cuda"), 2**30


@pytest.fixture
def gpu_memory(monkeypatch):
    """A GPU of 80 GiB: the driver gave torch 30 of them, of which 20 are in use."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20 * GIB)


@pytest.mark.usefixtures("gpu_memory")
def test_on_a_gpu_what_torch_holds_unused_is_free_and_what_learning_takes_is_not():
    assert kv_budget(None, 0.5, GPU).num_bytes == 30 * GIB
    beside = kv_budget(None, 0.5, GPU, 20 * GIB)
    assert beside.num_bytes == 20 * GIB
    assert beside.origin == "rollout.kv_fraction=0.5 of 60.00 GiB free, 20.00 GiB of them for learning"
    assert kv_budget(None, 0.5, GPU, 100 * GIB).num_bytes == 3 * GIB  # a tenth, whatever learning is said to take
    assert kv_budget(4.0, 0.5, GPU, 20 * GIB).num_bytes == 4 * GIB


def test_on_a_cpu_learning_shares_what_is_free():
    assert "for learning" not in kv_budget(None, 0.5, CPU, 20 * GIB).origin


@pytest.mark.parametrize(("num_requests", "expected"), [(300, 300), (5000, 1024)])
def test_a_gpu_writes_up_to_1024_at_once(num_requests, expected):
    assert choose_num_slots(None, num_requests, 100, 10, Budget(10**9, "here"), GPU) == expected


def test_slots_that_are_given_back_are_made_again_half_as_many_and_write_the_same(logged):
    model = make("llama", torch.float64)
    one = RolloutEngine(model, (END,), LocalWeights(model), EngineOptions(num_slots=8, deterministic=True))
    assert not one.release()
    first = tokens(one.generate(ask(9), SamplingParams()))
    assert one.stats.num_slots == 8
    assert one.release()
    assert "8 slots are given back, going on with 4" in logged[-1]
    assert not one.release()
    assert tokens(one.generate(ask(9), SamplingParams())) == first
    assert one.stats.num_slots == 4
    other = RolloutEngine(model, (END,), LocalWeights(model), EngineOptions(num_slots=8, deterministic=True))
    other.restore(one.state())
    other.generate(ask(9), SamplingParams())
    assert other.stats.num_slots == 4
