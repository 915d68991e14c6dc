from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest

from onpolicy_sdft.config.schema import ContextConfig, EvalConfig
from onpolicy_sdft.data.eval_sets import EvalSet
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.eval.answers import EVAL_STEP
from onpolicy_sdft.eval.intervals import mean_interval, wilson_interval
from onpolicy_sdft.eval.runner import pass_at_k, score_set
from onpolicy_sdft.rollout.backend import ignore_progress
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.tasks.mixed import MixedTask
from onpolicy_sdft.types import CheckResult, Demonstration, NoiseKey, Rollout, RolloutRequest, SamplingParams, Turn

END = 257


class Same(FreeForm):
    has_check = True

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        right = completion == demonstration.response
        return CheckResult(right, "" if right else "another_answer", completion)


class Scripted:
    """Answers from a table of (example id, sample index)."""

    def __init__(self, tokenizer, answers: dict[tuple[str, int], str], truncated: Sequence[str] = ()) -> None:
        self.tokenizer, self.answers, self.truncated = tokenizer, answers, truncated
        self.requests: list[RolloutRequest] = []
        self.params: SamplingParams | None = None

    def generate(self, requests, params, on_progress=ignore_progress) -> list[Rollout]:
        self.requests, self.params = list(requests), params
        return [self._answer(request) for request in requests]

    def _answer(self, request: RolloutRequest) -> Rollout:
        key = request.key
        ids = self.tokenizer(self.answers[key.example_id, key.sample_index], add_special_tokens=False)["input_ids"]
        stopped = key.example_id not in self.truncated
        ids = (*ids, END) if stopped else tuple(ids)
        zeros = (0.0,) * len(ids)
        return Rollout(key, request.prompt_token_ids, ids, zeros, zeros, zeros, "stop" if stopped else "length")


def questions(*names: str) -> EvalSet:
    rows = [Demonstration(name, (Turn("user", f"say {name}"),), name) for name in names]
    return EvalSet("mine", rows, Same(), max_new_tokens=9, retention=True)


@pytest.fixture
def renderer(tokenizer):
    return Renderer(tokenizer, ContextConfig())


def test_a_greedy_score_counts_right_answers_with_a_wilson_interval(tokenizer, renderer):
    answers = {("a", 0): "a", ("b", 0): "x", ("c", 0): "c", ("d", 0): "dd"}
    backend = Scripted(tokenizer, answers, truncated=["d"])
    found = score_set(questions("a", "b", "c", "d"), backend, renderer, EvalConfig(), ignore_progress)
    assert (found.label, found.retention, found.n, found.score) == ("mine", True, 4, 0.5)
    assert (found.low, found.high) == wilson_interval(2, 4)
    assert found.pass_at_k is None
    assert found.pass_at == {1: 0.5}
    assert found.note == ""
    assert found.mean_length == 2.0
    assert found.truncated_rate == 0.25
    assert backend.params == SamplingParams(temperature=0.0)


@pytest.mark.parametrize("num_samples", [1, 2])
def test_a_task_without_a_check_has_no_score(tokenizer, renderer, num_samples):
    answers = {(name, sample): "nonsense" for name in "ab" for sample in range(num_samples)}
    config = EvalConfig(temperature=float(num_samples - 1), num_samples=num_samples)
    asked = dataclasses.replace(questions("a", "b"), task=FreeForm())
    found = score_set(asked, Scripted(tokenizer, answers), renderer, config, ignore_progress)
    assert (found.score, found.low, found.high, found.pass_at_k, found.pass_at) == (None, None, None, None, {})
    assert found.note == "not checked: free_form has no check"
    assert found.n == 2


@pytest.mark.parametrize("num_samples", [1, 2])
def test_rows_without_a_check_are_no_part_of_a_score_and_are_counted(tokenizer, renderer, num_samples):
    right = {"a": True, "b": False, "c": True}
    answers = {(name, i): name if ok else "?" for name, ok in right.items() for i in range(num_samples)}
    config = EvalConfig(temperature=float(num_samples - 1), num_samples=num_samples)
    mixed = dataclasses.replace(questions("a", "b", "c"), task=MixedTask(Same(), {"c": FreeForm()}))
    found = score_set(mixed, Scripted(tokenizer, answers), renderer, config, ignore_progress)
    assert (found.score, found.n, found.note) == (0.5, 2, "1 of 3 questions have no check")
    assert found.pass_at[num_samples] == 0.5
    assert len(found.records) == 3 * num_samples
    if num_samples == 1:
        assert (found.low, found.high) == wilson_interval(1, 2)


def test_every_answer_leaves_a_record_in_order(tokenizer, renderer):
    backend = Scripted(tokenizer, {("a", 0): "a", ("b", 0): "x"})
    found = score_set(questions("a", "b"), backend, renderer, EvalConfig(), ignore_progress)
    assert found.records[1] == {
        "example_id": "b", "sample": 0, "correct": False, "reason": "another_answer", "answer": "x",
        "prompt": "say b", "reference": "b", "completion": "x", "num_tokens": 2, "finish_reason": "stop",
    }  # fmt: skip
    assert found.records[0]["correct"] is True


def test_questions_are_asked_bare_with_keys_that_no_optimizer_step_has(tokenizer, renderer):
    backend = Scripted(tokenizer, {("a", 0): "a", ("a", 1): "a"})
    config = EvalConfig(temperature=0.7, num_samples=2, seed=5)
    score_set(questions("a"), backend, renderer, config, ignore_progress)
    assert [request.key for request in backend.requests] == [NoiseKey(5, EVAL_STEP, "a", i) for i in range(2)]
    assert {request.prompt_token_ids for request in backend.requests} == {renderer.student_ids([Turn("user", "say a")])}
    assert {request.max_new_tokens for request in backend.requests} == {9}
    assert backend.params == SamplingParams(temperature=0.7)
    assert EVAL_STEP < 0


def test_a_sampled_score_is_the_mean_share_with_a_bootstrap_over_questions(tokenizer, renderer):
    right = {"a": (1, 1, 1, 1), "b": (0, 0, 0, 0), "c": (1, 0, 0, 0), "d": (1, 1, 0, 0)}
    answers = {(name, i): name if ok else "?" for name, row in right.items() for i, ok in enumerate(row)}
    config = EvalConfig(temperature=1.0, num_samples=4)
    found = score_set(questions(*right), Scripted(tokenizer, answers), renderer, config, ignore_progress)
    shares = [sum(row) / 4 for row in right.values()]
    assert found.score == sum(shares) / 4
    assert (found.low, found.high) == mean_interval(shares)
    assert found.pass_at_k == 0.75
    # Pass@2 by hand: a 1, b 0, c 1 - C(3,2)/C(4,2) = 1/2, d 1 - C(2,2)/C(4,2) = 5/6.
    assert found.pass_at == pytest.approx({1: 7 / 16, 2: (1 + 1 / 2 + 5 / 6) / 4, 4: 0.75})
    assert (found.n, len(found.records)) == (4, 16)


@pytest.mark.parametrize("num_samples", [1, 4, 6])
def test_pass_at_k_equals_enumeration(num_samples):
    for k in range(1, num_samples + 1):
        for num_right in range(num_samples + 1):
            samples = [i < num_right for i in range(num_samples)]
            draws = list(itertools.combinations(samples, k))
            expected = sum(any(draw) for draw in draws) / len(draws)
            assert pass_at_k([num_right], num_samples, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_told_for_powers_of_two_and_all_samples(tokenizer, renderer):
    for num_samples, ks in ((1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])):
        backend = Scripted(tokenizer, {("a", i): "a" for i in range(num_samples)})
        config = EvalConfig(temperature=1.0, num_samples=num_samples)
        found = score_set(questions("a"), backend, renderer, config, ignore_progress)
        assert list(found.pass_at) == ks
        assert set(found.pass_at.values()) == {1.0}


def test_what_a_task_wants_said_comes_with_the_score(tokenizer, renderer):
    class Careful(Same):
        note = "counts too few"

    asked = dataclasses.replace(questions("a"), task=Careful())
    found = score_set(asked, Scripted(tokenizer, {("a", 0): "a"}), renderer, EvalConfig(), ignore_progress)
    assert found.note == "counts too few"


def test_pass_at_k_is_averaged_over_questions():
    assert pass_at_k([0, 4], 4, 2) == 0.5


def test_a_real_model_is_scored_the_same_in_any_order_and_its_samples_differ(renderer, tiny_model):
    backend = HFBackend(tiny_model(), (END,), END, batch_size=8)
    config = EvalConfig(temperature=1.0, num_samples=3)
    found, turned = (
        score_set(questions(*names), backend, renderer, config, ignore_progress).records for names in ("ab", "ba")
    )
    assert [record["sample"] for record in found] == [0, 1, 2] * 2
    assert len({record["completion"] for record in found[:3]}) > 1
    assert [*found[3:], *found[:3]] == list(turned)
