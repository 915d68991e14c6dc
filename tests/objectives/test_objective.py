"""Every objective against a naive float64 version that autograd differentiates."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from onpolicy_sdft.config.schema import DivergenceName
from onpolicy_sdft.models.policy import Head
from onpolicy_sdft.objectives import divergence
from onpolicy_sdft.objectives.divergence import blended
from onpolicy_sdft.objectives.inputs import LossInputs, TeacherHidden, TopKLogprobs
from onpolicy_sdft.objectives.objective import LossPart, Objective, chunk_size

N, D, V = 13, 6, 31
DIVERGENCES = tuple(divergence.DIVERGENCES)
HEADS = [{}, {"scale": 0.3}, {"softcap": 2.0}, {"scale": 0.5, "softcap": 3.0}]


def test_options_and_formulas_name_the_same_divergences():
    assert get_args(DivergenceName) == DIVERGENCES


def plain_signals(n):
    """Every token alike, and no distribution."""
    return LossInputs(torch.ones(n), torch.zeros(n, dtype=torch.bool))


def draw(*shape, seed=0, dtype=torch.float64, grad=False):
    made = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_(grad)


def inputs(dtype=torch.float64, n=N, **head):
    labels = torch.randint(0, V, (n,), generator=torch.Generator().manual_seed(1))
    return draw(n, D, dtype=dtype, grad=True), Head(draw(V, D, seed=2, dtype=dtype, grad=True), **head), labels


def teacher_distribution(n=N, seed=5):
    return TeacherHidden(draw(n, D, seed=seed), Head(draw(V, D, seed=seed + 1)))


def naive_divergence(name, p, q, beta):
    if name == "forward_kl":
        return (p * (p / q).log()).sum(-1)
    if name == "reverse_kl":
        return (q * (q / p).log()).sum(-1)
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)


def check_gradients(objective, hidden, head, labels, signals, naive):
    """Compare value and every gradient with those of a differentiable scalar."""
    found = objective(hidden, head, labels, signals)
    wanted = [hidden, head.weight_VD]
    ours = torch.autograd.grad(found.loss_sum * 1.7, wanted)
    theirs = torch.autograd.grad(naive * 1.7, wanted)
    torch.testing.assert_close(found.loss_sum, naive.detach().requires_grad_(), check_dtype=False)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    return found


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("head", HEADS)
def test_nll_equals_plain_cross_entropy(chunk, head):
    hidden, layer, labels = inputs(**head)
    naive = F.cross_entropy(layer.logits(hidden), labels, reduction="sum")
    check_gradients(Objective(chunk_tokens=chunk), hidden, layer, labels, plain_signals(N), naive)


@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_equals_its_formula_over_the_whole_vocabulary(name, head, chunk):
    hidden, layer, labels = inputs(**head)
    distribution = teacher_distribution()
    p, q = distribution.head.logits(distribution.hidden_MD).softmax(-1), layer.logits(hidden).softmax(-1)
    naive = naive_divergence(name, p, q, 0.3).sum()
    signals = LossInputs(torch.ones(N), torch.zeros(N, dtype=torch.bool), distribution)
    check_gradients(Objective(name, beta=0.3, chunk_tokens=chunk), hidden, layer, labels, signals, naive)


@pytest.mark.parametrize("recorded", [False, True], ids=["computed", "recorded"])
@pytest.mark.parametrize("support", ["teacher", "student"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_kept_tokens_and_a_tail_equal_the_formula_over_buckets(name, support, recorded):
    if recorded and support == "student":
        pytest.skip("what is recorded is the teacher's")
    hidden, layer, labels = inputs(softcap=4.0)
    distribution = teacher_distribution()
    p, q = distribution.head.logits(distribution.hidden_MD).softmax(-1), layer.logits(hidden).softmax(-1)
    kept = (p if support == "teacher" else q).topk(5).indices
    buckets = [torch.cat([x.gather(-1, kept), 1 - x.gather(-1, kept).sum(-1, keepdim=True)], -1) for x in (p, q)]
    naive = naive_divergence(name, *buckets, 0.3).sum()
    given = TopKLogprobs(kept, p.gather(-1, kept).log()) if recorded else distribution
    signals = LossInputs(torch.ones(N), torch.zeros(N, dtype=torch.bool), given)
    objective = Objective(name, beta=0.3, support=support, num_kept=5, chunk_tokens=4)
    check_gradients(objective, hidden, layer, labels, signals, naive)


@pytest.mark.parametrize(("name", "support"), list(itertools.product(DIVERGENCES, ("teacher", "student"))))
def test_keeping_every_token_is_the_whole_vocabulary(name, support):
    hidden, layer, labels = inputs()
    signals = LossInputs(torch.ones(N), torch.zeros(N, dtype=torch.bool), teacher_distribution())
    kept = Objective(name, support=support, num_kept=V)(hidden, layer, labels, signals).loss_sum
    nearly = Objective(name, support=support, num_kept=V - 1)(hidden, layer, labels, signals).loss_sum
    full = Objective(name)(hidden, layer, labels, signals).loss_sum
    distribution = signals.teacher
    logs, ids = distribution.head.logits(distribution.hidden_MD).log_softmax(-1).sort(-1, descending=True)
    recorded = LossInputs(signals.weights_N, signals.plain_N, TopKLogprobs(ids, logs))
    from_record = Objective(name, support=support, num_kept=V)(hidden, layer, labels, recorded).loss_sum
    torch.testing.assert_close(from_record, full)
    torch.testing.assert_close(kept, full)
    torch.testing.assert_close(nearly, full)  # a tail of one token is that token


def test_the_score_function_gradient_is_that_of_the_divergence_in_expectation():
    """By enumeration: sum_y s(y) (log s(y) - log t(y)) grad log s(y) = grad KL(s || t)."""
    hidden, layer, _ = inputs(n=1)
    distribution = teacher_distribution(1)
    total, value = torch.zeros_like(hidden), 0.0
    probabilities = layer.logits(hidden).softmax(-1)[0]
    for token in range(V):
        signals = LossInputs(torch.ones(1), torch.zeros(1, dtype=torch.bool), distribution)
        loss = Objective("sampled_reverse_kl")(hidden, layer, torch.tensor([token]), signals).loss_sum
        (gradient,) = torch.autograd.grad(loss, hidden)
        total += probabilities[token].detach() * gradient
        value += probabilities[token].item() * loss.item()
    p = distribution.head.logits(distribution.hidden_MD).softmax(-1)
    divergence = naive_divergence("reverse_kl", p, layer.logits(hidden).softmax(-1), 0.5).sum()
    (expected,) = torch.autograd.grad(divergence, hidden)
    torch.testing.assert_close(total, expected)
    assert value == pytest.approx(divergence.item())


def test_the_gradient_of_the_estimate_itself_would_be_zero_in_expectation():
    """Why the score function is there at all (trap: differentiating the difference)."""
    hidden, layer, _ = inputs(n=1)
    logs = layer.logits(hidden).log_softmax(-1)[0]
    expectation = (logs.detach().exp() * logs).sum()
    (gradient,) = torch.autograd.grad(expectation, hidden)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", ["nll", *DIVERGENCES, "sampled_reverse_kl"])
def test_weights_clip_importance_plain_tokens_and_anchor_are_what_they_say(name):
    hidden, layer, labels = inputs()
    plain = torch.arange(N) % 4 == 1
    own = ~plain
    distribution, anchor = teacher_distribution(int(own.sum())), teacher_distribution(N, seed=9)
    weights = torch.linspace(0.2, 1.5, N)
    drawn = draw(int(own.sum()), seed=11) - 3
    clip = 2.5
    objective = Objective(
        name, beta=0.3, clip=clip, anchor_weight=0.4, importance=True, importance_cap=1.2, chunk_tokens=3
    )
    signals = LossInputs(weights, plain, distribution, anchor, drawn)

    logs = layer.logits(hidden).log_softmax(-1)
    at_label = logs.gather(-1, labels[:, None])[:, 0]
    p, q = distribution.head.logits(distribution.hidden_MD).softmax(-1), logs.exp()[own]
    if name == "nll":
        losses = -at_label[own]
    elif name == "sampled_reverse_kl":
        teacher_at_label = p.log().gather(-1, labels[own][:, None])[:, 0]
        distance = (at_label[own] - teacher_at_label).detach()
        # The value is the estimate, the gradient the score function's.
        losses = distance * at_label[own] - (distance * at_label[own]).detach() + distance
    else:
        losses = naive_divergence(name, p, q, 0.3)
    ratio = (at_label[own] - drawn).exp().detach()
    rho = ratio.clamp_max(1.2)
    own_sum = (weights[own] * rho * torch.where(losses > clip, clip, losses)).sum()
    plain_sum = (weights[plain] * -at_label[plain]).sum()
    a = anchor.head.logits(anchor.hidden_MD).softmax(-1)
    anchor_sum = 0.4 * (weights * naive_divergence("reverse_kl", a, logs.exp(), 0.5)).sum()
    found = check_gradients(objective, hidden, layer, labels, signals, own_sum + plain_sum + anchor_sum)
    figures = found.figures.tolist()
    assert figures[LossPart.OWN] == pytest.approx(own_sum.item(), rel=1e-6)
    assert figures[LossPart.PLAIN] == pytest.approx(plain_sum.item(), rel=1e-6)
    assert figures[LossPart.ANCHOR] == pytest.approx(anchor_sum.item(), rel=1e-6)
    assert figures[LossPart.CLIPPED] == (losses > clip).sum().item()
    assert figures[LossPart.IMPORTANCE] == pytest.approx(rho.sum().item(), rel=1e-6)
    assert figures[LossPart.CAPPED] == (ratio > 1.2).sum().item()


@pytest.mark.parametrize("given", ["full", "teacher", "student", "recorded", "recorded whole"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_blended_target_and_disagreement_are_what_they_say_and_have_no_gradient(name, given):
    hidden, layer, labels = inputs(softcap=4.0)
    distribution, b, apart = teacher_distribution(), 0.4, 1.5
    p, s = distribution.head.logits(distribution.hidden_MD).log_softmax(-1), layer.logits(hidden).log_softmax(-1)
    num_kept = 0 if given == "full" else V if given == "recorded whole" else 5
    kept = (s if given == "student" else p).topk(num_kept).indices
    place = labels
    t, q = p, s
    if 0 < num_kept < V:
        t, q = (torch.cat([x.exp().gather(-1, kept), 1 - x.exp().gather(-1, kept).sum(-1, keepdim=True)], -1).log()
                for x in (p, s))  # fmt: skip
        place = torch.tensor(
            [
                row.index(label) if label in row else num_kept
                for row, label in zip(kept.tolist(), labels.tolist(), strict=True)
            ]
        )
        assert 0 < (place == num_kept).sum() < N, "labels of both kinds"
    target = ((1 - b) * t + b * q.detach()).softmax(-1)
    d = ((t - q).gather(-1, place[:, None])[:, 0].abs() / apart).clamp_max(1.0).detach()
    losses = naive_divergence(name, target, q.exp(), 0.3)
    clip = float(losses.detach().median()) * 1.001  # no loss is as near as rounding
    naive = (d * torch.where(losses > clip, clip, losses)).sum()
    support = given if given in ("full", "student") else "teacher"
    objective = Objective(
        name, beta=0.3, support=support, num_kept=num_kept, blend=b, disagreement=apart, clip=clip, chunk_tokens=4
    )
    teacher = TopKLogprobs(kept, p.gather(-1, kept)) if given.startswith("recorded") else distribution
    signals = LossInputs(torch.ones(N), torch.zeros(N, dtype=torch.bool), teacher)
    check_gradients(objective, hidden, layer, labels, signals, naive)


def test_a_blended_target_of_no_weight_is_the_teacher():
    distribution = torch.randn(4, 9).log_softmax(-1)
    torch.testing.assert_close(blended(distribution, torch.randn(4, 9).log_softmax(-1), 0.0), distribution)


def test_a_label_that_was_not_drawn_has_importance_one():
    hidden, layer, labels = inputs()
    drawn = torch.full((N,), math.nan)
    signals = LossInputs(torch.ones(N), torch.zeros(N, dtype=torch.bool), sampling_logprobs_M=drawn)
    with_importance = Objective(importance=True)(hidden, layer, labels, signals)
    torch.testing.assert_close(with_importance.loss_sum, Objective()(hidden, layer, labels, signals).loss_sum)


def test_a_bias_is_part_of_the_logits_and_has_a_gradient():
    hidden, layer, labels = inputs()
    bias = draw(V, seed=7, grad=True)
    loss = Objective(chunk_tokens=5)(hidden, Head(layer.weight_VD, bias), labels, plain_signals(N)).loss_sum
    naive = F.cross_entropy(hidden @ layer.weight_VD.T + bias, labels, reduction="sum")
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(torch.autograd.grad(loss, bias), torch.autograd.grad(naive, bias))


@pytest.mark.parametrize("name", ["nll", *DIVERGENCES])
def test_bfloat16_compute_gives_a_float32_loss_close_to_the_exact_one(name):
    hidden, layer, labels = inputs(torch.float32)
    exact = teacher_distribution()
    distribution = TeacherHidden(exact.hidden_MD.float(), Head(exact.head.weight_VD.float()))
    signals = LossInputs(torch.ones(N), torch.zeros(N, dtype=torch.bool), distribution)
    wide = Objective(name)(hidden, layer, labels, signals).loss_sum
    with torch.autocast("cpu", torch.bfloat16):
        narrow = Objective(name)(hidden, layer, labels, signals).loss_sum
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(wide.item(), rel=0.03)
    ours = torch.autograd.grad(narrow, [hidden, layer.weight_VD])
    theirs = torch.autograd.grad(wide, [hidden, layer.weight_VD])
    for mine, other in zip(ours, theirs, strict=True):
        assert F.cosine_similarity(mine.flatten(), other.flatten(), dim=0) > 0.999


def test_no_tokens_give_a_zero_that_reaches_every_input():
    hidden, layer, labels = inputs()
    bias = draw(V, seed=7, grad=True)
    found = Objective()(hidden[:0], Head(layer.weight_VD, bias), labels[:0], plain_signals(0))
    found.loss_sum.backward()
    assert bias.grad is not None
    assert found.loss_sum.item() == 0.0
    assert not found.figures.any()
    assert hidden.grad is not None
    assert layer.weight_VD.grad is not None
    assert not hidden.grad.any()


@pytest.mark.parametrize("name", ["nll", "forward_kl"])
def test_no_more_than_a_chunk_of_logits_is_alive_and_nothing_is_computed_twice(monkeypatch, name):
    seen = []
    finish = Head.finish

    def spy(self, raw):
        seen.append(len(raw))
        return finish(self, raw)

    monkeypatch.setattr(Head, "finish", spy)
    hidden, layer, labels = inputs(n=100)
    signals = LossInputs(torch.ones(100), torch.zeros(100, dtype=torch.bool), teacher_distribution(100))
    Objective(name, chunk_tokens=32)(hidden, layer, labels, signals).loss_sum.backward()
    assert max(seen) == 32
    assert sum(seen) == 100 * (1 if name == "nll" else 2)


def test_without_gradients_the_value_is_the_same():
    hidden, layer, labels = inputs()
    with torch.no_grad():
        quiet = Objective()(hidden, layer, labels, plain_signals(N)).loss_sum
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, Objective()(hidden, layer, labels, plain_signals(N)).loss_sum.detach())


@pytest.mark.parametrize(("vocab_size", "expected"), [(49_152, 682), (151_936, 220), (256_000, 131)])
def test_a_chunk_is_as_large_as_memory_allows_on_a_gpu_and_as_it_was_on_a_cpu(vocab_size, expected):
    assert chunk_size(vocab_size, "cuda") == expected
    assert chunk_size(vocab_size, "cpu") == 128
    assert chunk_size(10**9, "cuda") == 1
