"""Rules 1, 2 and 7 of the step: one denominator, the right gradient, the loss at temperature 1."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import weakref

import pytest
import torch
from torch.nn import functional as F

from onpolicy_sdft.config.schema import ScreeningConfig
from onpolicy_sdft.errors import TrainingError
from onpolicy_sdft.types import RolloutRequest, SamplingParams

DEVICE_DTYPE = torch.float64


def naive_loss(bench, targets):
    """Token mean of cross-entropy by plain forwards of one unpadded row each."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for target in targets:
        ids = torch.tensor([[*target.pair.student_ids, *target.token_ids]])
        logits = bench.model(input_ids=ids).logits[0]
        start = len(target.pair.student_ids)
        total = total + F.cross_entropy(logits[start - 1 : -1], ids[0, start:], reduction="sum")
        count += len(target.token_ids)
    return total / count


@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
@pytest.mark.parametrize("targets", ["policy", "demonstrations"])
def test_the_gradient_of_a_step_equals_a_naive_reference_in_float64(make_bench, lora, targets):
    bench = make_bench(dtype=DEVICE_DTYPE, lora=lora, targets=targets, micro_batch_tokens=300)
    if lora is not None:  # adapters start at zero, where half of their gradient is zero too
        for name, parameter in bench.model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
                parameter.data.mul_(0.05)
    ours = bench.gradients()
    rollouts = bench.trainer.source.rollouts(bench.pairs, step=0)
    learned = bench.trainer.screen(bench.pairs, rollouts, lambda v, n: [])
    bench.model.zero_grad()
    naive_loss(bench, learned).backward()
    theirs = {n: p.grad for n, p in bench.model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 3), (250, 7), (400, 1024)])
def test_the_gradient_does_not_depend_on_the_micro_batch_split_or_the_chunk(make_bench, tokens, chunk):
    whole = make_bench(dtype=DEVICE_DTYPE).gradients()
    split = make_bench(dtype=DEVICE_DTYPE, micro_batch_tokens=tokens, chunk_tokens=chunk).gradients()
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_the_loss_is_at_temperature_one_even_when_sampling_is_not(make_bench):
    bench = make_bench(dtype=DEVICE_DTYPE, params=SamplingParams(temperature=0.5, top_k=20))
    rollouts = bench.trainer.source.rollouts(bench.pairs, step=0)
    targets = bench.trainer.screen(bench.pairs, rollouts, lambda v, n: [])
    expected = naive_loss(bench, targets).item()
    metrics = bench.step()
    assert [t.token_ids for t in metrics.targets] == [t.token_ids for t in targets]
    assert math.isclose(metrics.values["loss/total"], expected, rel_tol=1e-9)


def test_plain_fine_tuning_learns_the_demonstration_and_exactly_one_terminator(make_bench):
    bench = make_bench(targets="demonstrations")
    for target in bench.step().targets:
        assert target.token_ids == target.pair.response_ids
        assert target.token_ids.count(257) == 1
        assert target.token_ids[-1] == 257


def test_a_step_whose_targets_are_all_dropped_changes_nothing_and_is_counted(make_bench):
    bench = make_bench(
        screening=ScreeningConfig(truncated="drop", looping="drop", length="drop", empty="drop"), max_new_tokens=1
    )
    before = {n: p.clone() for n, p in bench.model.named_parameters()}
    metrics = bench.step()
    assert metrics.skipped == "all_dropped"
    assert bench.trainer.state.bad_steps_in_a_row == 1
    assert bench.trainer.state.num_updates == 0
    assert all(torch.equal(p, before[n]) for n, p in bench.model.named_parameters())


def test_a_skipped_step_neither_takes_nor_loses_a_refresh_of_the_teacher(make_bench):
    teacher = {"kind": "stage", "refresh_steps": 2}
    bench = make_bench(targets="demonstrations", teacher=teacher)
    trainer = bench.trainer

    def is_fresh() -> bool:
        kept = trainer.weights.copies["stage"]
        return all(torch.equal(kept[n], p) for n, p in bench.model.named_parameters() if n in kept)

    fresh = []
    for skips in (False, True, False, True, True, False, False):
        with pytest.MonkeyPatch.context() as patch:
            if skips:
                patch.setattr(trainer, "review", lambda drawn: [dataclasses.replace(t, token_ids=()) for t in drawn])
            metrics = bench.step()
        assert bool(metrics.skipped) is skips
        fresh.append(is_fresh())
    # Updates 1, -, 2, -, -, 3, 4: what was taken at the second stays until the third, whatever is skipped between.
    assert fresh == [False, False, True, True, True, False, True]
    assert trainer.state.num_updates == 4


@pytest.mark.parametrize("targets", ["demonstrations", "policy"])
def test_a_step_with_logits_that_are_no_numbers_changes_nothing_and_is_counted(make_bench, targets):
    bench = make_bench(targets=targets)
    before = {n: p.clone() for n, p in bench.model.named_parameters()}
    embedding = bench.model.get_input_embeddings().weight
    with torch.no_grad():
        whole = embedding.clone()
        embedding.fill_(math.nan)
    assert bench.step().skipped
    with torch.no_grad():
        embedding.copy_(whole)
    assert all(torch.equal(p, before[n]) for n, p in bench.model.named_parameters())
    assert bench.step().skipped == ""


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(make_bench, poison):
    bench = make_bench(targets="demonstrations")
    before = {n: p.clone() for n, p in bench.model.named_parameters()}
    objective = bench.trainer.objective

    class Poisoned:
        name = "nll"

        def __call__(self, hidden, head, labels, signals):
            found = objective(hidden, head, labels, signals)
            if poison == "loss":
                return dataclasses.replace(found, loss_sum=found.loss_sum * math.inf)
            hidden.register_hook(lambda gradient: gradient * math.nan)
            return found

    bench.trainer.objective = Poisoned()
    metrics = bench.step()
    assert metrics.skipped == "not_finite"
    assert not [name for name in metrics.values if name.startswith("loss/")], "nothing was learned"
    assert bench.trainer.state.bad_steps_in_a_row == 1
    assert all(torch.equal(p, before[n]) for n, p in bench.model.named_parameters())
    bench.trainer.objective = objective
    assert bench.step().skipped == ""
    assert bench.trainer.state.bad_steps_in_a_row == 0
    assert all(p.isfinite().all() for p in bench.model.parameters())


def test_a_rank_without_targets_still_reaches_every_weight_in_its_backward(make_bench):
    bench = make_bench(targets="demonstrations")
    bench.trainer.backend.max_over_ranks = lambda value: value + 1  # another rank has one more
    *_, empty = bench.micro_batches(bench.trainer.screen(bench.pairs, [None] * 6, lambda v, n: []))
    assert empty.num_loss_tokens == 0
    loss, _ = bench.trainer.policy(empty, bench.trainer.objective, *bench.trainer.teacher_scorer([empty]))
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is not None for p in bench.model.parameters() if p.requires_grad)


def test_training_on_its_own_rollouts_makes_them_likelier_from_the_bare_prompt(make_bench):
    bench = make_bench(lr=5e-3)
    first = bench.step()
    before = first.values["loss/total"]
    batches = bench.micro_batches(first.targets)
    with torch.no_grad():
        trainer = bench.trainer
        total = sum(trainer.policy(b, trainer.objective, *trainer.teacher_scorer([b]))[0].item() for b in batches)
    assert total / sum(b.num_loss_tokens for b in batches) < before


def test_out_of_memory_in_learning_halves_micro_batches_and_repeats_the_step(make_bench):
    plain, short = make_bench(dtype=torch.float64), make_bench(dtype=torch.float64)
    expected = plain.step()
    policy, sizes = short.trainer.policy, []

    def runs_out(batch, *rest):
        sizes.append(len(batch.rows))
        if len(batch.rows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return policy(batch, *rest)

    runs_out.train = policy.train
    short.trainer.policy = runs_out
    found = short.step()
    assert sizes[0] == len(short.pairs)
    assert [t.token_ids for t in found.targets] == [t.token_ids for t in expected.targets]
    assert short.rollout_backend.stats.num_tokens == plain.rollout_backend.stats.num_tokens
    for name in ("loss/total", "train/grad_norm", "train/num_loss_tokens"):
        assert found.values[name] == pytest.approx(expected.values[name], rel=1e-9)
    assert found.values["train/num_halvings"] > 0
    assert found.values["train/num_micro_batches"] > expected.values["train/num_micro_batches"] == 1
    short.trainer.policy = lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("not even one"))
    short.trainer.policy.train = policy.train
    with pytest.raises(TrainingError, match="lower train.micro_batch_tokens"):
        short.step()


def test_out_of_memory_in_learning_takes_slots_before_it_halves_micro_batches(make_bench):
    plain, short = make_bench(dtype=torch.float64), make_bench(dtype=torch.float64)
    expected = [plain.step() for _ in range(2)]
    policy, engine = short.trainer.policy, short.rollout_backend

    def runs_out_beside_slots(batch, *rest):
        if engine._pool is not None and engine._pool.num_slots > 2:
            raise torch.OutOfMemoryError("out of memory")
        return policy(batch, *rest)

    runs_out_beside_slots.train = policy.train
    short.trainer.policy = runs_out_beside_slots
    found = [short.step() for _ in range(2)]
    assert [f.values["train/num_releases"] for f in found] == [1, 1]
    assert [f.values["train/num_halvings"] for f in found] == [0, 0]
    assert [f.values["rollout/num_slots"] for f in found] == [4, 2]
    for one, other in zip(found, expected, strict=True):
        assert [t.token_ids for t in one.targets] == [t.token_ids for t in other.targets]
        for name in ("loss/total", "train/grad_norm"):
            assert one.values[name] == pytest.approx(other.values[name], rel=1e-9)


def test_what_a_broken_off_micro_batch_held_is_free_before_it_is_done_again(make_bench):
    bench = make_bench(dtype=torch.float64)
    policy, held = bench.trainer.policy, []

    def runs_out(batch, *rest):
        if not held:
            activations = torch.zeros(3)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("out of memory")
        assert held[0]() is None
        return policy(batch, *rest)

    runs_out.train = policy.train
    bench.trainer.policy = runs_out
    gc.disable()
    try:
        bench.step()
    finally:
        gc.enable()
    assert held


@pytest.mark.parametrize("rollouts", ["hf", "engine"])
def test_what_a_step_logs_of_sampling_is_of_all_its_calls(make_bench, rollouts, monkeypatch):
    screening = ScreeningConfig(truncated="resample", max_attempts=3)
    bench = make_bench(rollouts=rollouts, screening=screening, max_new_tokens=6)
    trainer, backend = bench.trainer, bench.rollout_backend
    generate, calls = backend.generate, []

    def spy(*args, **options):
        written = generate(*args, **options)
        calls.append(dataclasses.replace(backend.stats))
        return written

    def review(targets, step):
        keys = [dataclasses.replace(target.rollout.key, attempt=1_000_000) for target in targets]
        requests = [RolloutRequest(t.pair.student_ids, key, 3) for t, key in zip(targets, keys, strict=True)]
        assert len(trainer.source.answers(requests, step)) == len(targets)
        return targets

    monkeypatch.setattr(backend, "generate", spy)
    trainer.reviewer = review
    for _ in range(2):
        calls.clear()
        values = bench.step().values
        assert len(calls) > 1
        num_tokens, seconds = sum(call.num_tokens for call in calls), sum(call.total_seconds for call in calls)
        assert values["rollout/num_tokens"] == num_tokens > calls[-1].num_tokens
        assert values["time/sampling_seconds"] == pytest.approx(seconds)
        assert values["rollout/tokens_per_second"] == pytest.approx(num_tokens / seconds)
        if rollouts == "hf":
            continue
        forwards = sum(call.num_decode_forwards for call in calls)
        rows = sum(call.num_decode_rows for call in calls)
        assert values["rollout/num_slots"] == 4
        assert values["rollout/slot_occupancy"] == pytest.approx(rows / forwards / 4)
        assert values["rollout/tokens_per_forward"] == pytest.approx(num_tokens / forwards)
        assert values["time/rollout_decode_seconds"] == pytest.approx(sum(call.decode_seconds for call in calls))


def test_putting_weights_in_place_is_a_part_of_the_rollout(make_bench):
    bench, now = make_bench(targets="demonstrations"), 0.0

    @contextlib.contextmanager
    def gathers():
        nonlocal now
        now += 3.0
        yield
        now += 1.0

    bench.trainer.source.open = gathers
    bench.trainer.recorder.clock = lambda: now
    values = bench.step().values
    assert (values["time/rollout_seconds"], values["time/step_seconds"]) == (4.0, 4.0)
