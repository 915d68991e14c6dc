"""The methods as settings of one step: distributions that agree, gradients however they were computed."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from onpolicy_sdft.config.schema import ScreeningConfig
from onpolicy_sdft.train.batch import repeat_samples
from onpolicy_sdft.types import RecordOptions, SamplingParams

DOUBLE = torch.float64
KEEP_ALL = ScreeningConfig(**dict.fromkeys(("banned", "empty", "truncated", "looping", "length", "check"), "keep"))
STUDENT = {"prompt": "student"}


def shake(bench, size=0.05, seed=0):
    """Move the trainable weights, so that teachers of other weights differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in bench.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * size)


def assert_same(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, msg=name, **(tolerance or {"rtol": 1e-8, "atol": 1e-11}))


@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("view", ["teacher", "student"])
@pytest.mark.few(4)
def test_the_gradient_of_a_divergence_step_equals_a_naive_reference_in_float64(make_bench, lora, name, view):
    bench = make_bench(
        dtype=DOUBLE, lora=lora, objective={"name": name}, sampling={"prompt": view}, screening=KEEP_ALL,
        micro_batch_tokens=300, max_new_tokens=12,
    )  # fmt: skip
    shake(bench)
    ours = bench.gradients()
    rollouts = bench.trainer.source.rollouts(bench.pairs, step=0)
    bench.model.zero_grad()
    total, count = torch.zeros((), dtype=DOUBLE), 0
    for pair, rollout in zip(bench.pairs, rollouts, strict=True):
        distributions = []
        for prompt in (pair.teacher_ids, pair.student_ids):
            ids = torch.tensor([[*prompt, *rollout.token_ids]])
            distributions.append(bench.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1))
        t, s = distributions[0].detach(), distributions[1]
        if name == "forward_kl":
            total = total + (t.exp() * (t - s)).sum()
        elif name == "reverse_kl":
            total = total + (s.exp() * (s - t)).sum()
        else:
            m = ((t.exp() + s.exp()) / 2).log()
            total = total + 0.5 * (t.exp() * (t - m)).sum() + 0.5 * (s.exp() * (s - m)).sum()
        count += len(rollout.token_ids)
    (total / count).backward()
    assert_same(ours, {n: p.grad for n, p in bench.model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("support", ["full", "teacher"])
def test_a_recorded_law_gives_the_gradient_of_a_second_forward(make_bench, support):
    objective = {"name": "forward_kl", "support": support, "num_kept": 20}
    record = RecordOptions(hidden=True) if support == "full" else RecordOptions(top_k=20)
    options = {"dtype": DOUBLE, "objective": objective, "max_new_tokens": 12, "screening": KEEP_ALL}
    free = make_bench(**options, sampling={"record": record})
    asked = make_bench(**options, sampling={"record": RecordOptions()})
    calls = []
    score = free.trainer.weights.score
    free.trainer.weights.score = lambda *a: calls.append(1) or score(*a)
    # Tops are kept in float32.
    tolerance = {"rtol": 1e-8, "atol": 1e-11} if support == "full" else {"rtol": 1e-4, "atol": 1e-6}
    assert_same(free.gradients(), asked.gradients(), **tolerance)
    assert not calls, "the rollout recorded what the objective needs"


@pytest.mark.parametrize("objective", ["nll", "forward_kl", "reverse_kl", "sampled_reverse_kl"])
@pytest.mark.few(2)
def test_the_gradient_does_not_depend_on_the_micro_batch_split(make_bench, objective):
    def gradients(tokens, chunk):
        sampled = objective == "sampled_reverse_kl"
        bench = make_bench(
            dtype=DOUBLE, objective={"name": objective, "clip": 6.0, "anchor_weight": 0.3}, screening=KEEP_ALL,
            sampling=STUDENT if sampled else {}, teacher={"anchor": "base"}, micro_batch_tokens=tokens,
            chunk_tokens=chunk, max_new_tokens=12,
            pairing={"num_skipped": 1, "position_weights": (0.5, 1.0, 0.8), "demonstration_weight": 0.2},
        )  # fmt: skip
        shake(bench)
        return bench.gradients()

    whole = gradients(100_000, 1024)
    assert_same(gradients(250, 7), whole)
    assert_same(gradients(1, 3), whole)


def test_the_gradient_does_not_depend_on_how_ranks_share_the_batch(make_bench):
    """Two ranks, one after the other: each has its rows, both have the step's denominator."""
    options = {"dtype": DOUBLE, "objective": {"name": "forward_kl"}, "max_new_tokens": 12, "screening": KEEP_ALL}
    whole = make_bench(**options)
    expected = whole.gradients()
    total = 0
    for part in (slice(0, 4), slice(4, 6)):
        bench = make_bench(**options)
        rollouts = bench.trainer.source.rollouts(bench.pairs[part], step=0)
        total += sum(len(rollout.token_ids) for rollout in rollouts)
    found = None
    for part in (slice(0, 4), slice(4, 6)):
        bench = make_bench(**options)
        bench.pairs = bench.pairs[part]
        mine = sum(len(rollout.token_ids) for rollout in bench.trainer.source.rollouts(bench.pairs, step=0))
        bench.trainer.backend.gather = lambda value, mine=mine: (
            [(total, total, *value[2:])] if value[:2] == (mine, mine) else [value]
        )
        share = bench.gradients()
        found = share if found is None else {name: found[name] + share[name] for name in share}
    assert_same(found, expected)


def test_a_frozen_teacher_under_the_students_prompt_has_divergence_zero(make_bench):
    bench = make_bench(
        dtype=DOUBLE, objective={"name": "reverse_kl"}, teacher={"kind": "base"}, screening=KEEP_ALL,
        sampling={"prompt": "student", "record": RecordOptions()},
    )  # fmt: skip
    scored: list[int] = []
    score = bench.trainer.weights.score
    bench.trainer.weights.score = lambda *a: scored.append(1) or score(*a)
    bench.pairs = [dataclasses.replace(pair, teacher_ids=pair.student_ids) for pair in bench.pairs]
    metrics = bench.step()
    assert scored
    assert abs(metrics.values["loss/reverse_kl"]) < 1e-12
    assert metrics.values["train/grad_norm"] < 1e-10


def test_an_anchor_that_the_policy_has_not_left_costs_nothing_and_then_pulls_back(make_bench):
    bench = make_bench(dtype=DOUBLE, objective={"anchor_weight": 2.0}, teacher={"anchor": "base"}, max_new_tokens=8)
    assert abs(bench.step().values.get("loss/anchor", 0.0)) < 1e-12
    shake(bench)
    assert bench.step().values["loss/anchor"] > 1e-3


def written(bench):
    with bench.trainer.source.open():
        return [rollout.token_ids for rollout in bench.trainer.source.rollouts(bench.pairs, step=0)]


@pytest.mark.parametrize("kind", ["ema", "stage", "base"])
def test_the_teachers_weights_sample_under_its_prompt_and_the_students_their_own(make_bench, kind):
    teacher = {"kind": kind, "half_life": math.inf}
    seed = make_bench(max_new_tokens=12)
    expected = written(seed)
    bench = make_bench(max_new_tokens=12, teacher=teacher)
    shake(bench, 0.3)
    assert written(bench) == expected
    live = make_bench(max_new_tokens=12, sampling=STUDENT)
    shake(live, 0.3)
    own = written(live)
    student = make_bench(max_new_tokens=12, teacher=teacher, sampling=STUDENT)
    shake(student, 0.3)
    assert written(student) == own


def test_several_samples_of_a_demonstration_differ_and_read_their_prompt_once(make_bench):
    bench = make_bench(num_samples=3, max_new_tokens=12)
    metrics = bench.step()
    assert len(metrics.targets) == 18
    first = [target.token_ids for target in metrics.targets[:3]]
    assert len({*first}) == 3
    assert bench.rollout_backend.stats.num_shared_tokens > 0
    assert [target.rollout.key.sample_index for target in metrics.targets[:3]] == [0, 1, 2]


def test_under_a_divergence_fallbacks_and_added_demonstrations_are_learned_by_nll(make_bench):
    bench = make_bench(
        dtype=DOUBLE, objective={"name": "reverse_kl"}, sampling=STUDENT, max_new_tokens=3,
        screening=ScreeningConfig(truncated="fallback", looping="keep", length="keep", empty="keep"),
        pairing={"demonstration_weight": 0.5},
    )  # fmt: skip
    metrics = bench.step()
    assert metrics.values["screen/fallback_rate"] == 1.0
    nll, count = 0.0, 0
    reference = make_bench(dtype=DOUBLE)
    for pair in bench.pairs:
        ids = torch.tensor([[*pair.student_ids, *pair.response_ids]])
        logits = reference.model(input_ids=ids).logits[0, len(pair.student_ids) - 1 : -1]
        nll += F.cross_entropy(logits, ids[0, len(pair.student_ids) :], reduction="sum").item()
        count += len(pair.response_ids)
    assert metrics.values["loss/reverse_kl"] == 0.0
    assert metrics.values["loss/demonstration_nll"] == pytest.approx(1.5 * nll / count)
    assert metrics.values["train/num_loss_tokens"] == 2 * count


def test_importance_weights_are_one_where_the_student_writes_by_its_own_law(make_bench):
    on_policy = make_bench(
        dtype=DOUBLE, objective={"name": "reverse_kl", "importance": True}, sampling=STUDENT, screening=KEEP_ALL
    )
    plain = make_bench(dtype=DOUBLE, objective={"name": "reverse_kl"}, sampling=STUDENT, screening=KEEP_ALL)
    assert_same(on_policy.gradients(), plain.gradients(), rtol=1e-5, atol=1e-7)
    cold = make_bench(
        dtype=DOUBLE, objective={"name": "reverse_kl", "importance": True}, sampling=STUDENT, screening=KEEP_ALL,
        params=SamplingParams(0.5),
    )  # fmt: skip
    values = cold.step().values
    assert 0 < values["loss/mean_importance"] < 1, "a colder distribution draws likely tokens too often"


@pytest.mark.slow
def test_nll_and_forward_kl_on_teacher_samples_have_the_same_expected_gradient(make_bench):
    """The sums over a whole text, not token means: a text's length goes with its tokens.

    Each sample's nll gradient minus its forward_kl gradient (with the recorded distribution) has mean zero; the values
    differ by the teacher's entropy.
    """
    benches = {
        name: make_bench(
            dtype=DOUBLE, objective={"name": name}, screening=KEEP_ALL, max_new_tokens=6,
            sampling={"record": RecordOptions(hidden=True)},
        )
        for name in ("nll", "forward_kl")
    }  # fmt: skip
    bench = benches["nll"]
    pairs = repeat_samples(bench.pairs[:1], 900)
    rollouts = bench.trainer.source.rollouts(pairs, step=0)
    targets = bench.trainer.screen(pairs, rollouts, lambda v, n: [])
    weight = "model.layers.1.mlp.down_proj.weight"
    differences, values = [], []
    for start in range(0, 900, 30):
        found = []
        for each in benches.values():
            each.model.zero_grad()
            total = 0.0
            for batch in each.micro_batches(targets[start : start + 30]):
                loss, _ = each.trainer.policy(batch, each.trainer.objective, *each.trainer.teacher_scorer([batch]))
                loss.backward()
                total += loss.item()
            found.append((dict(each.model.named_parameters())[weight].grad.clone(), total))
        (nll_gradient, nll), (kl_gradient, kl) = found
        entropy = sum(sum(target.rollout.entropies) for target in targets[start : start + 30])
        differences.append((nll_gradient - kl_gradient).flatten())
        values.append(nll - kl - entropy)
    stacked = torch.stack(differences)
    standard_error = stacked.std(0) / math.sqrt(len(stacked))
    scores = (stacked.mean(0) / standard_error).abs()
    assert scores.pow(2).mean() < 1.6, "squared scores of a zero mean average to about 1.07 at 30 batches"
    assert (scores > 5).float().mean() < 1e-2
    beyond = torch.tensor(values)  # what the values differ by, beyond the teacher's entropy
    assert abs(beyond.mean()) < 4 * beyond.std() / math.sqrt(len(beyond))
    # The test can tell: a third of a gradient more would show.
    off = stacked + 0.3 * kl_gradient.flatten()
    assert (off.mean(0) / (off.std(0) / math.sqrt(len(off)))).pow(2).mean() > 2


def test_the_average_moves_once_a_step_whatever_the_split_and_not_in_a_skipped_one(make_bench):
    """Trap T19."""
    bench = make_bench(teacher={"kind": "ema", "half_life": 1.0}, micro_batch_tokens=1, max_new_tokens=6)
    start = {name: kept.clone() for name, kept in bench.trainer.weights.copies["ema"].items()}
    bench.step()
    for name, kept in bench.trainer.weights.copies["ema"].items():
        live = dict(bench.model.named_parameters())[name].detach()
        torch.testing.assert_close(kept, (start[name] + live) / 2, rtol=1e-5, atol=1e-6)
    kept = {name: tensor.clone() for name, tensor in bench.trainer.weights.copies["ema"].items()}
    bench.trainer.screen.verdicts = dict.fromkeys(bench.trainer.screen.verdicts, "drop")
    assert bench.step().skipped == "all_dropped"
    assert all(torch.equal(kept[name], tensor) for name, tensor in bench.trainer.weights.copies["ema"].items())


def test_targets_leave_the_step_without_the_laws_that_were_recorded(make_bench):
    bench = make_bench(objective={"name": "forward_kl"}, screening=KEEP_ALL, max_new_tokens=6)
    for target in bench.step().targets:
        assert target.rollout.hidden is None
        assert target.rollout.top is None
