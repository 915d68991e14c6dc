from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from onpolicy_sdft.config.schema import ContextConfig, RunConfig, ScreeningConfig
from onpolicy_sdft.data.prepare import prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.eval.intervals import wilson_interval
from onpolicy_sdft.eval.probe_rows import ProbeRow, bare_answers, find_limits, recommend, summarise, teaches_shortcuts
from onpolicy_sdft.screening.bare import BareAnswers
from onpolicy_sdft.screening.review import BarePromptReview, Limits, Prompts
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks.exact import Exact
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.types import Demonstration, Measures, NoiseKey, Rollout, Turn

BARE = BareAnswers(
    16, 4, length=192.0, num_steps=12.0, of_right=True, length_score=0.25, surprise=0.17, surprise_high=0.22
)


@pytest.fixture
def renderer(tokenizer):
    return Renderer(tokenizer, ContextConfig())


@pytest.fixture
def four(renderer):
    rows = [Demonstration(f"id-{i}", (Turn("user", f"{i}?"),), f"answer {i}") for i in range(4)]
    return prepare(rows, renderer, ContextConfig(), seed=0).pairs


def rollout(ids: Sequence[int], reason: Any = "stop", logprob: float = -0.3) -> Rollout:
    numbers = (logprob,) * len(ids)
    return Rollout(NoiseKey(0, 0, "x"), (1,), tuple(ids), numbers, numbers, (0.5,) * len(ids), reason)


def reviewer(screen: Screen, **options: Any) -> BarePromptReview:
    """Finds every token twice as surprising under the bare prompt as given the demonstration alone."""

    def score(texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, ...]]:
        return [(-0.4 if tuple(prompt) == (7,) else -0.8,) * len(target) for prompt, target in texts]

    def never(requests: Any, step: int) -> Any:
        raise AssertionError("nothing is sampled")

    prompts = Prompts(lambda pairs: (7,), lambda pairs, text: (8,))
    return BarePromptReview(ScreeningConfig(**options), screen.task, screen.decode, score, never, prompts, 20, 0)


def judged(renderer, four, task, **options):
    texts = ["answer 0", "ANSWER 1", "wrong here", "answer 3"]
    rollouts = [rollout(renderer.response_ids(text)) for text in texts]
    rollouts[3] = rollout(rollouts[3].token_ids[:-1], "length")
    screen = Screen(ScreeningConfig(**options), task, renderer.decode)
    screened = [screen.judge(pair, each, 0) for pair, each in zip(four, rollouts, strict=True)]
    measured = reviewer(screen, **options).measure(screened, 0)
    checked = [task.check(screen.decode(each.token_ids), pair.demonstration).correct
               for pair, each in zip(four, rollouts, strict=True)]  # fmt: skip
    return screen, [dataclasses.replace(t, correct=right) for t, right in zip(measured, checked, strict=True)]


def test_a_row_counts_scores_copies_refusals_lengths_and_measures(renderer, four):
    task = Exact()
    screen, targets = judged(renderer, four, task)
    row = summarise(targets, dataclasses.replace(BARE, length=18.5), screen, "prior_turn", 1.0, seconds=8.0)
    right = sum(bool(target.correct) for target in targets)
    assert right == sum(task.check(screen.decode(t.rollout.token_ids), t.pair.demonstration).correct for t in targets)
    assert (row.template, row.temperature, row.n) == ("prior_turn", 1.0, 4)
    assert row.score == right / 4
    assert (row.low, row.high) == wilson_interval(right, 4)
    assert row.verbatim_rate == 0.5
    assert row.worth_rate == sum(t.verdict == "keep" for t in targets) / 4 - 0.25  # the other copy was refused
    assert row.reasons == {"check": 4 - right, "truncated": 1}
    assert row.refused_right == {"truncated": 1}
    assert row.keep_rate == 1 - (5 - right) / 4
    assert row.entropy == pytest.approx(0.5)
    assert row.mean_length == (9 + 9 + 11 + 8) / 4
    assert row.length_ratio == (9 + 9 + 11 + 8) / 36
    assert row.bare_ratio == pytest.approx(0.5)
    assert row.seconds_per_rollout == 2.0
    assert (row.surprise, row.leak) == (pytest.approx(0.8), pytest.approx(0.4))


def test_texts_without_the_work_are_counted(renderer, four):
    screen, targets = judged(renderer, four, Exact())
    assert summarise(targets, BARE, screen, "x", 1.0, 1.0).answer_only_rate == 0.0  # no bare answers to compare with
    screen.bare = BARE
    assert summarise(targets, BARE, screen, "x", 1.0, 1.0).answer_only_rate == 0.0  # as long as the demonstrations
    worked = [dataclasses.replace(t, pair=dataclasses.replace(t.pair, response_ids=(5,) * 80)) for t in targets]
    assert summarise(worked, BARE, screen, "x", 1.0, 1.0).answer_only_rate == 1.0


def test_bare_answers_of_a_task_without_a_check_are_never_right(renderer, four):
    screen, targets = judged(renderer, four, FreeForm())
    found = bare_answers(targets, screen.task, screen.decode)
    assert (found.num, found.num_right, found.surprise) == (4, 0, pytest.approx(0.3))
    screen, targets = judged(renderer, four, Exact())
    assert bare_answers(targets, screen.task, screen.decode).num_right == sum(bool(t.correct) for t in targets)


def test_bounds_that_are_not_given_come_from_bare_answers_and_rewrites(renderer, four):
    _, targets = judged(renderer, four, Exact())
    found = find_limits(BARE, targets, Limits())
    assert 2 * BARE.surprise_high <= found.max_surprise < 1.0
    assert 0.1 < found.max_leak < 0.9
    assert found.min_support is None
    assert find_limits(BARE, targets, Limits(0.1, 0.2, 0.3)) == Limits(0.1, 0.2, 0.3)
    measures = Measures(0.1, 0.1, support=1.0, support_spread=0.3)
    free = [dataclasses.replace(target, measures=measures) for target in targets]
    assert find_limits(BARE, free, Limits()).min_support == pytest.approx(0.3)


BASE = ProbeRow(
    template="bare", temperature=1.0, n=32, score=0.2, low=0.1, high=0.3, keep_rate=0.2, reasons={}, refused_right={},
    worth_rate=0.2, verbatim_rate=0.0, answer_only_rate=0.0, surprise=0.2, leak=0.0, entropy=1.0, mean_length=20.0,
    length_ratio=1.0, bare_ratio=1.0, seconds_per_rollout=0.1,
)  # fmt: skip


def shown(template: str, temperature: float = 1.0, **values: float) -> ProbeRow:
    worth = values.get("keep_rate", 0.2) - values.get("verbatim_rate", 0.0)
    return dataclasses.replace(
        BASE, **{"template": template, "temperature": temperature, "worth_rate": worth, **values}
    )


def test_the_setting_with_most_answers_in_its_own_words_is_recommended():
    copies = shown("prior_turn", 0.6, score=0.95, keep_rate=0.95, verbatim_rate=0.8)
    own = shown("reference", 1.0, score=0.7, keep_rate=0.6, verbatim_rate=0.1, surprise=0.4)
    said = recommend([BASE], [copies, own])
    assert said.startswith("Take context.template=reference, rollout.temperature=1: 50% of the rollouts")
    assert "0.40 nats a token under the bare prompt (bare answers: 0.20)" in said
    assert "0.70 with the demonstration, 0.20 without" in said


def test_of_settings_as_good_the_one_that_surprises_least_is_recommended():
    loud = shown("reference", score=0.7, keep_rate=0.65, surprise=1.5)
    calm = shown("work", score=0.7, keep_rate=0.6, surprise=0.4)
    assert recommend([BASE], [loud, calm]).startswith("Take context.template=work")


def test_no_setting_is_recommended_when_nearly_everything_is_copied_or_refused():
    copies = shown("prior_turn", score=0.9, keep_rate=0.9, verbatim_rate=0.85)
    said = recommend([BASE], [copies, shown("example", score=0.0, keep_rate=0.0)])
    assert said.startswith("No setting is a good teacher: at best (context.template=prior_turn")


def test_a_teacher_no_better_than_the_bare_model_is_said_to_be_so():
    said = recommend([dataclasses.replace(BASE, score=0.8)], [shown("reference", score=0.75, keep_rate=0.7)])
    assert "not better with the demonstration (0.75) than without (0.80)" in said


def test_settings_that_would_teach_shortcuts_are_named():
    config = RunConfig()
    few = dataclasses.replace(BARE, num_right=0, of_right=False)
    fine = shown("work", keep_rate=0.8, surprise=0.4)
    assert teaches_shortcuts(fine, BARE, config) == ""
    answers = shown("reference", keep_rate=0.8, answer_only_rate=0.4, surprise=0.9)
    assert "40% of the rollouts under context.template=reference state the answer" in teaches_shortcuts(
        answers, few, config
    )
    assert "own right answers (median 192)" in teaches_shortcuts(answers, BARE, config)
    one = dataclasses.replace(answers, n=3, answer_only_rate=1 / 3)
    assert "state the answer" not in teaches_shortcuts(one, BARE, config)
    strange = dataclasses.replace(fine, surprise=1.6, mean_length=150.0, length_ratio=1.2)
    assert "1.60 nats a token" in teaches_shortcuts(strange, BARE, config)
    assert teaches_shortcuts(strange, few, config) == ""  # new knowledge is surprising
    terse = dataclasses.replace(strange, mean_length=20.0)
    assert teaches_shortcuts(terse, BARE, config) == ""  # what the data asks for


def test_a_setting_that_would_teach_shortcuts_is_not_recommended():
    worst = shown("reference", score=0.9, keep_rate=0.9, surprise=0.3)
    calm = shown("work", score=0.7, keep_rate=0.5, surprise=0.4)
    assert recommend([BASE], [worst, calm], [worst]).startswith("Take context.template=work")
    assert "all of them would teach shortcuts" in recommend([BASE], [worst], [worst])
