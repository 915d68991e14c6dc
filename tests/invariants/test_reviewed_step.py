"""A step whose rollouts are measured under the bare prompt, and picked by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from onpolicy_sdft.config.schema import ScreeningConfig
from onpolicy_sdft.screening.review import BarePromptReview, Limits, Prompts
from onpolicy_sdft.train.scoring import Scorer

if TYPE_CHECKING:
    from conftest import Bench

KEPT: dict[str, Any] = dict.fromkeys(("truncated", "looping", "length", "empty", "answer_only", "support"), "keep")


def reviewed(make_bench: Callable[..., Bench], **options: Any) -> Bench:
    screening = ScreeningConfig(**{**KEPT, **options.pop("rules", {})})
    bench = make_bench(screening=screening, dtype=torch.float64, **options)
    trainer = bench.trainer
    trainer.reviewer = BarePromptReview(
        screening, trainer.screen.task, trainer.screen.decode, Scorer(trainer.weights, trainer.pairing, "cpu"),
        trainer.source.answers, Prompts(lambda v: v.response_ids[:2], lambda v, text: v.student_ids), 24, 0,
    )  # fmt: skip
    return bench


@pytest.mark.parametrize("weights", ["live", "ema", "stage"])
def test_surprise_is_the_loss_of_what_is_learned_whoever_teaches(make_bench, weights):
    bench = reviewed(make_bench, teacher={"kind": weights})
    with torch.no_grad():  # the teacher's copies are others than the policy's weights by now
        for parameter in bench.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter, generator=torch.Generator().manual_seed(1))
    metrics = bench.step()
    lengths = [len(target.token_ids) for target in metrics.targets]
    surprises = [target.measures.surprise for target in metrics.targets if target.measures]
    mean = sum(s * n for s, n in zip(surprises, lengths, strict=True)) / sum(lengths)
    assert mean == pytest.approx(metrics.values["loss/total"], rel=1e-9)
    assert metrics.values["rollout/surprise"] == pytest.approx(sum(surprises) / len(surprises))


def test_what_surprises_too_much_is_not_learned(make_bench):
    bench = reviewed(make_bench, rules={"surprise": "drop"})
    surprises = [t.measures.surprise for t in bench.trainer.review(first_targets(bench)) if t.measures]
    bound = sorted(surprises)[2]
    bench.trainer.reviewer.limits = Limits(max_surprise=bound)
    metrics = bench.step()
    assert [target.verdict for target in metrics.targets] == ["keep" if s <= bound else "drop" for s in surprises]
    assert metrics.values["screen/reason/surprise_rate"] == pytest.approx(sum(s > bound for s in surprises) / 6)


def first_targets(bench: Bench) -> list[Any]:
    rollouts = bench.trainer.source.rollouts(bench.pairs, step=0)
    return [bench.trainer.screen.judge(pair, each, 0) for pair, each in zip(bench.pairs, rollouts, strict=True)]


def test_one_of_several_samples_is_learned_and_the_demonstration_at_most_once(make_bench):
    bench = reviewed(make_bench, num_samples=3)
    bench.trainer.picks_best = True
    metrics = bench.step()
    for start in range(0, 18, 3):
        group = metrics.targets[start : start + 3]
        (kept,) = [target for target in group if target.verdict == "keep"]
        assert kept.measures.surprise == min(target.measures.surprise for target in group)
        assert {target.pair.demonstration.example_id for target in group} == {group[0].pair.demonstration.example_id}
    assert metrics.values["train/num_loss_tokens"] == sum(len(t.token_ids) for t in metrics.targets)
    assert metrics.values["screen/spare_rate"] == pytest.approx(2 / 3)
    assert metrics.values["screen/keep_rate"] == 1.0  # of what was chosen
    assert sum(len(texts) for texts in bench.trainer.state.learned.values()) == 6


def test_weights_of_targets_scale_their_gradients(make_bench):
    whole = reviewed(make_bench).gradients()
    half = reviewed(make_bench)
    review = half.trainer.review
    half.trainer.review = lambda targets: [replace(t, weight=0.5) for t in review(targets)]  # type: ignore[method-assign]
    for name, gradient in half.gradients().items():
        assert torch.allclose(2 * gradient, whole[name], atol=1e-12)


def test_surprising_tokens_of_a_demonstration_that_stands_in_give_no_gradient(make_bench):
    def bench(clip: float | None) -> Bench:
        return reviewed(make_bench, rules={"truncated": "fallback", "length": "fallback"}, max_new_tokens=2,
                        pairing={"fallback_clip": clip})  # fmt: skip

    unclipped, clipped, all_clipped = bench(None), bench(5.5), bench(1e-6)
    loss = unclipped.step().values["loss/total"]
    values = clipped.step().values
    assert values["screen/fallback_rate"] == 1.0
    assert values["loss/total"] < loss
    assert 0 < values["loss/fallback_clipped_rate"] < 1
    assert all(not gradient.any() for gradient in all_clipped.gradients().values())
