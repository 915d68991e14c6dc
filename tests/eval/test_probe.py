from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from onpolicy_sdft.config.schema import ContextConfig, ScreeningConfig
from onpolicy_sdft.data.views import Renderer, prepare
from onpolicy_sdft.eval.intervals import wilson_interval
from onpolicy_sdft.eval.probe import ProbeRow, probe, recommend, summarise_probe
from onpolicy_sdft.rollout.backend import ignore_progress
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks.exact import Exact
from onpolicy_sdft.types import Demonstration, NoiseKey, Rollout, SamplingLaw, Turn

END = 257


@pytest.fixture
def renderer(tokenizer):
    return Renderer(tokenizer, ContextConfig())


@pytest.fixture
def four(renderer):
    rows = [Demonstration(f"id-{i}", (Turn("user", f"{i}?"),), f"answer {i}") for i in range(4)]
    return prepare(rows, renderer, ContextConfig(), seed=0).views


def rollout(ids: Sequence[int], reason: str = "stop") -> Rollout:
    return Rollout(
        NoiseKey(0, 0, "x"), (1,), tuple(ids), (0.0,) * len(ids), (0.0,) * len(ids), (0.5,) * len(ids), reason
    )


def test_a_row_counts_scores_copies_refusals_and_lengths(renderer, four):
    texts = ["answer 0", "ANSWER 1", "wrong here", "answer 3"]
    rollouts = [rollout(renderer.response_ids(text)) for text in texts]
    rollouts[3] = rollout(rollouts[3].token_ids[:-1], "length")
    task = Exact()
    screen = Screen(ScreeningConfig(), task, renderer.decode)
    row = summarise_probe(four, rollouts, "prior_turn", 1.0, screen, task, seconds=8.0)
    right = sum(task.check(text, v.demonstration).correct for text, v in zip(texts, four, strict=True))
    assert (row.template, row.temperature, row.n) == ("prior_turn", 1.0, 4)
    assert row.score == right / 4
    assert (row.low, row.high) == wilson_interval(right, 4)
    assert row.verbatim_rate == 0.5
    assert row.reasons == {"check": 4 - right, "truncated": 1}
    assert row.keep_rate == 1 - (5 - right) / 4
    assert row.entropy == pytest.approx(0.5)
    assert row.mean_length == (9 + 9 + 11 + 8) / 4
    assert row.length_ratio == (9 + 9 + 11 + 8) / 36
    assert row.seconds_per_rollout == 2.0


@pytest.mark.parametrize(("template", "view"), [("bare", "student_ids"), ("prior_turn", "teacher_ids")])
def test_the_bare_row_asks_the_student_and_the_others_the_teacher(renderer, four, tiny_model, template, view):
    asked = []

    class Spy(HFBackend):
        def generate(self, requests, law, on_progress=ignore_progress):
            asked.extend(requests)
            return super().generate(requests, law, on_progress)

    backend, task = Spy(tiny_model(), (END,), END, 4), Exact()
    row = probe(
        four, template=template, law=SamplingLaw(0.5), backend=backend, task=task, max_new_tokens=5, seed=3,
        screen=Screen(ScreeningConfig(), task, renderer.decode), on_progress=ignore_progress,
    )  # fmt: skip
    assert [request.prompt_token_ids for request in asked] == [getattr(v, view) for v in four]
    assert len({request.key for request in asked}) == 4
    assert (row.template, row.temperature, row.n) == (template, 0.5, 4)
    assert sum(row.reasons.values()) == round(4 * (1 - row.keep_rate))
    assert row.seconds_per_rollout > 0


BASE = ProbeRow("bare", 1.0, 32, 0.2, 0.1, 0.3, 0.2, {}, 0.0, 1.0, 20.0, 1.0, 0.1)


def shown(template: str, temperature: float, score: float, keep_rate: float, verbatim_rate: float) -> ProbeRow:
    return dataclasses.replace(
        BASE, template=template, temperature=temperature, score=score, keep_rate=keep_rate, verbatim_rate=verbatim_rate
    )


def test_the_setting_with_most_answers_in_its_own_words_is_recommended():
    copies, own = shown("prior_turn", 0.6, 0.95, 0.95, 0.8), shown("reference", 1.0, 0.7, 0.6, 0.1)
    said = recommend([BASE], [copies, own])
    assert said.startswith("Take context.template=reference, rollout.temperature=1: 50% of the rollouts")
    assert "0.70 with the demonstration, 0.20 without" in said


def test_no_setting_is_recommended_when_nearly_everything_is_copied_or_refused():
    said = recommend([BASE], [shown("prior_turn", 1.0, 0.9, 0.9, 0.85), shown("example", 1.0, 0.0, 0.0, 0.0)])
    assert said.startswith("No setting is a good teacher: at best (context.template=prior_turn")


def test_a_teacher_no_better_than_the_bare_model_is_said_to_be_so():
    said = recommend([dataclasses.replace(BASE, score=0.8)], [shown("reference", 1.0, 0.75, 0.7, 0.1)])
    assert "not better with the demonstration (0.75) than without (0.80)" in said
