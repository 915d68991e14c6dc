from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from test_screen import END, SaysYes, decode, encode, make_pair, rollout

from onpolicy_sdft.config.schema import ScreeningConfig
from onpolicy_sdft.screening.review import BarePromptReview, Limits, Prompts
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.types import NoiseKey, PromptPair, Rollout, RolloutRequest, Target

ALONE = (7, 7)


class Model:
    """Finds each token as likely as it is told to, by prompt; continues every prompt with the same text."""

    def __init__(self, bare: float = -0.2, alone: float = -0.2, shown: float = -1.0, says: str = "yes") -> None:
        self.logprobs = {(1, 2): bare, ALONE: alone}
        self.shown = shown
        self.says = says
        self.scored: list[Any] = []
        self.asked: list[RolloutRequest] = []

    def score(self, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, ...]]:
        self.scored.append(texts)
        return [(self.logprobs.get(tuple(prompt), self.shown),) * len(target) for prompt, target in texts]

    def sample(self, requests: Sequence[RolloutRequest], step: int) -> list[Rollout]:
        self.asked += requests
        ids = (*encode(self.says), END)
        numbers = (0.0,) * len(ids)
        return [Rollout(r.key, r.prompt_token_ids, ids, numbers, numbers, numbers, "stop") for r in requests]


def kept(text: str = "yes, because", name: str = "id-0") -> Target:
    written = rollout(text)
    return Target(make_pair(name), written.token_ids, text, "keep", "", written, correct=True)


def shown(pair: PromptPair, text: str) -> tuple[int, ...]:
    return (5, *encode(text))


def review(model: Model, task: Any = None, **options: Any) -> BarePromptReview:
    prompts = Prompts(alone=lambda pair: ALONE, shown=shown)
    return BarePromptReview(
        ScreeningConfig(**options), task or SaysYes(), decode, model.score, model.sample, prompts, 40, 0
    )


def test_every_rollout_is_measured_in_one_call_refused_ones_too():
    model = Model(bare=-1.7, alone=-0.5)
    refused = Target(make_pair(), make_pair().response_ids, "x", "fallback", "check", rollout("no"), correct=False)
    demonstration = Target(make_pair(), make_pair().response_ids, "x", "keep", "", None)
    first, second, third = review(model)([kept(), refused, demonstration], 0)
    assert len(model.scored) == 1
    assert first.measures is not None
    assert second.measures is not None
    assert third.measures is None
    assert (first.measures.surprise, first.measures.surprise_max) == (pytest.approx(1.7), pytest.approx(1.7))
    assert first.measures.leak == pytest.approx(1.2)
    assert (first.verdict, second.verdict) == ("keep", "fallback")


def test_what_was_written_under_the_bare_prompt_is_not_scored_again():
    target = kept()
    assert target.rollout is not None
    own = dataclasses.replace(target.rollout, prompt_token_ids=target.pair.student_ids, logprobs=(-0.3, -0.5) * 6)
    model = Model()
    (found,) = review(model)([dataclasses.replace(target, rollout=own)], 0)
    assert found.measures is not None
    assert found.measures.surprise == pytest.approx(0.4)
    (texts,) = model.scored
    assert [prompt for prompt, _ in texts] == [ALONE]
    blended = dataclasses.replace(target.rollout, bare_logprobs=(-0.1, -0.5) * 6)
    (found,) = review(model)([dataclasses.replace(target, rollout=blended)], 0)
    assert found.measures is not None
    assert found.measures.surprise == pytest.approx(0.3)
    judge = review(model)
    judge.trusts_records = False  # an average of the weights wrote it
    (found,) = judge([dataclasses.replace(target, rollout=blended)], 0)
    assert found.measures is not None
    assert found.measures.surprise == pytest.approx(0.2)


def test_nothing_is_measured_for_nothing():
    model = Model()
    (target,) = review(model, measure=False, support="keep")([kept()], 0)
    assert target.measures is None
    assert model.scored == []
    review(model, measure=False, surprise="drop")([kept()], 0)
    (texts,) = model.scored
    assert [prompt for prompt, _ in texts] == [(1, 2)]  # no leak


@pytest.mark.parametrize(
    ("rule", "model"),
    [("surprise", Model(bare=-1.7)), ("leak", Model(bare=-1.7, alone=-0.5))],
)
@pytest.mark.parametrize("verdict", ["fallback", "drop", "keep"])
def test_what_the_bare_prompt_cannot_explain_is_refused_where_the_rule_says_so(rule, model, verdict):
    judge = review(model, **{rule: verdict})
    judge.limits = Limits(max_surprise=0.6, max_leak=0.5)
    (target,) = judge([kept()], 0)
    assert (target.verdict, target.reason) == (verdict, "" if verdict == "keep" else rule)
    assert target.correct is True  # refused although the check accepts it: that is counted
    expected = {"fallback": make_pair().response_ids, "drop": (), "keep": kept().token_ids}
    assert target.token_ids == expected[verdict]
    calm = review(Model(), **{rule: verdict})
    calm.limits = Limits(max_surprise=0.6, max_leak=0.5)
    assert calm([kept()], 0)[0].verdict == "keep"


def test_a_rule_without_a_bound_refuses_nothing():
    (target,) = review(Model(bare=-9.0), surprise="drop", leak="drop")([kept()], 0)
    assert target.verdict == "keep"


def test_a_free_text_must_lead_back_to_its_demonstration():
    class Judge(Model):
        def score(self, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, ...]]:
            # A text that names what the demonstration says makes it likelier.
            return [(-0.5 if target[0] in prompt else -1.0,) * len(target) for prompt, target in texts]

    def row(text: str, response: str) -> Target:
        return dataclasses.replace(kept(text), pair=make_pair(response, response))

    targets = [row("about Apples", "A"), row("nonsense", "B"), row("say Cat", "C")]
    judge = review(Judge(), FreeForm())
    assert [target.verdict for target in judge(targets, 0)] == ["keep"] * 3  # no bound is known yet
    judge.limits = Limits(min_support=0.1)
    judged = judge(targets, 0)
    assert [target.verdict for target in judged] == ["keep", "fallback", "keep"]
    assert judged[1].reason == "support"
    assert judged[0].measures is not None
    assert judged[0].measures.support == pytest.approx(0.5)
    with_check = review(Judge(), SaysYes())(targets, 0)
    assert [target.verdict for target in with_check] == ["keep"] * 3


def test_steps_that_do_not_lead_the_bare_policy_to_the_same_end_are_refused():
    for says, verdict in (("yes", "keep"), ("no", "drop")):
        model = Model(says=says)
        (target,) = review(model, steps="drop", step_samples=3)([kept("abcdefgh, ij")], 4)
        assert target.verdict == verdict
        half = kept("abcdefgh, ij").token_ids[:6]
        assert [request.prompt_token_ids for request in model.asked] == [(1, 2, *half)] * 3
        assert len({request.key for request in model.asked}) == 3
        assert {request.max_new_tokens for request in model.asked} == {40 - 6}
        assert {request.key.step for request in model.asked} == {4}


def test_rows_that_the_bare_policy_solves_are_left_out_or_weigh_less():
    class Half(Model):
        def sample(self, requests: Sequence[RolloutRequest], step: int) -> list[Rollout]:
            written = super().sample(requests, step)
            no = rollout("no")
            return [r if i % 4 else no for i, r in enumerate(written)]

    targets = [kept("yes, one", "a"), kept("yes, two", "a"), kept("yes, three", "b")]
    model = Half()
    judged = review(model, bare_samples=4, weigh_by_failure=True)(targets, 0)
    assert len(model.asked) == 8  # once for both samples of one demonstration
    assert [target.weight for target in judged] == [0.25] * 3
    judged = review(Half(), bare_samples=4, solved="drop", max_solved_rate=0.5)(targets, 0)
    assert [(target.verdict, target.reason) for target in judged] == [("drop", "solved")] * 3


def test_an_example_twice_in_a_step_is_measured_alike_on_one_rank_and_on_two():
    def presentation(number: int, *texts: str) -> list[Target]:
        return [
            dataclasses.replace(
                kept(text),
                pair=dataclasses.replace(make_pair(), sample_index=2 * number + sample, presentation=number),
                correct=text.startswith("yes"),
            )
            for sample, text in enumerate(texts)
        ]

    first, second = presentation(0, "yes, one", "no, two"), presentation(1, "yes, three", "yes, four")
    options = {"bare_samples": 3, "agreement": "drop"}
    together = review(Model(), **options)
    apart = review(Model(), **options)
    assert together([*first, *second], 0) == apart(first, 0) + apart(second, 0)
    model = Model()
    review(model, **options)([*first, *second], 0)
    assert len({request.key for request in model.asked}) == 6  # answers of their own, with noise of their own


def test_noise_of_a_review_is_that_of_no_draw():
    model = Model()
    review(model, steps="drop", bare_samples=2, solved="drop")([kept()], 3)
    keys = [request.key for request in model.asked]
    assert len(set(keys)) == 4
    assert all(key.attempt > 999 for key in keys)
    assert NoiseKey(0, 3, "id-0") not in keys


def test_controls_of_a_free_text_are_those_of_all_ranks():
    def texts(*parts: list[Target]) -> list[Any]:
        found = []
        named = [[(t.pair.demonstration.example_id, t.pair.sample_index, t.text) for t in part] for part in parts]
        for part in parts:
            model = Model()
            judge = review(model, FreeForm(), measure=False)
            judge.gather = lambda own: named
            judge(part, 0)
            found += model.scored[0][len(part) :]
        return found

    targets = [kept(f"text {name}", name) for name in "abcde"]
    assert texts(targets[:2], targets[2:]) == texts(targets)
    assert texts(targets[:1], targets[1:]) == texts(targets)


def test_rewrites_of_which_too_few_are_right_are_refused():
    right, wrong = kept("yes, one"), dataclasses.replace(kept("no, two"), verdict="fallback", correct=False)
    judged = review(Model(), agreement="drop", min_agreement=0.5)([right, wrong, wrong], 0)
    assert [target.verdict for target in judged] == ["drop", "fallback", "fallback"]
    assert judged[0].reason == "agreement"
    judged = review(Model(), agreement="drop", min_agreement=0.3)([right, wrong, wrong], 0)
    assert judged[0].verdict == "keep"


def test_a_row_that_the_policy_solves_needs_no_demonstration_either():
    wrong = dataclasses.replace(kept("no"), verdict="fallback", reason="check", correct=False)
    (target,) = review(Model(), bare_samples=2, solved="drop")([wrong], 0)
    assert (target.verdict, target.reason) == ("drop", "solved")


def test_what_has_no_check_is_neither_solved_nor_tested():
    model = Model()
    (target,) = review(model, FreeForm(), bare_samples=2, solved="drop", steps="drop", measure=False)([kept()], 0)
    assert target.verdict == "keep"
    assert model.asked == []
