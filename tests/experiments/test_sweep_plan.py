from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.config.sweep import SweepConfig
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.experiments.sweep_plan import make_plan


@pytest.fixture
def sweep(tmp_path: Path):
    base = tmp_path / "base.yaml"
    base.write_text(
        "data: {path: rows.jsonl}\noptim: {lr: 0.5}\ntrain: {max_steps: 7, output_dir: elsewhere, seed: 5}\n"
    )

    def make(**options) -> SweepConfig:
        return SweepConfig(base=[str(base)], output_dir=str(tmp_path / "sweep"), **options)

    return make


def refuse(config: SweepConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        make_plan(config)
    return str(caught.value)


def test_every_run_has_its_options_its_directory_and_its_seed(sweep, tmp_path):
    plan = make_plan(sweep(axes={"optim.lr": [0.1, 0.2]}, seeds=[3, 1], options={"train.batch_size": 2}))
    assert [run.name for run in plan.runs] == ["lr-0.1_seed-3", "lr-0.2_seed-3", "lr-0.1_seed-1", "lr-0.2_seed-1"]
    assert [(run.config.optim.lr, run.config.train.seed) for run in plan.runs] == [
        (0.1, 3),
        (0.2, 3),
        (0.1, 1),
        (0.2, 1),
    ]
    for run in plan.runs:
        train = run.config.train
        assert run.path == Path(train.output_dir) == tmp_path / "sweep" / "runs" / run.name
        assert (train.resume, train.max_steps, train.batch_size) == ("auto", 7, 2)
    assert not (tmp_path / "sweep").exists()


def test_a_run_has_the_options_that_the_same_flags_give_it(sweep):
    shared = {"rollout.temperature": 0.5, "task.options": {"match": "contains"}, "data.system": "Answer: yes"}
    (run,) = make_plan(sweep(axes={"optim.betas": [[0.8, 0.9]]}, options=shared)).runs
    expected = load_config(*sweep().base, **shared, **{"optim.betas": [0.8, 0.9]})
    train = replace(expected.train, output_dir=str(run.path), seed=0, resume="auto")
    assert run.config == replace(expected, train=train)


def test_base_then_options_then_axes_in_their_order(sweep):
    bundle = {"label": "b", "method": "sft", "optim.lr": 0.3, "optim.eps": 0.3}
    first = make_plan(sweep(options={"optim.lr": 0.1}, axes={"mine": [bundle], "optim.lr": [0.2]})).runs[0].config
    last = make_plan(sweep(options={"optim.eps": 0.1}, axes={"optim.lr": [0.2], "mine": [bundle]})).runs[0].config
    assert (first.optim.lr, first.optim.eps, first.train.targets) == (0.2, 0.3, "demonstrations")
    assert (last.optim.lr, last.optim.eps) == (0.3, 0.3)
    assert make_plan(sweep(options={"optim.lr": "1e-2"})).runs[0].config.optim.lr == 0.01


def test_methods_are_layers_over_the_base(sweep):
    plan = make_plan(sweep(axes={"method": ["sft", "sdft", "sdft_kl"]}))
    assert [(run.config.train.targets, run.config.objective.name) for run in plan.runs] == [
        ("demonstrations", "nll"), ("policy", "nll"), ("policy", "reverse_kl"),
    ]  # fmt: skip


def test_all_points_that_cannot_run_are_listed_and_none_is_planned(sweep):
    axes = {"objective.name": ["nll", "jsd", "sampled_reverse_kl"], "rollout.prompt": ["teacher", "student"]}
    message = refuse(sweep(axes=axes, seeds=[0, 1]))
    first, *points = message.splitlines()
    assert first.startswith("3 of 6 points cannot run, so none was started.")
    assert [line.split(":")[0].strip() for line in points] == [
        "objective-nll_prompt-student", "objective-sampled_reverse_kl_prompt-teacher",
        "objective-sampled_reverse_kl_prompt-student",
    ]  # fmt: skip
    assert "nothing in it knows the demonstration" in points[0]
    assert "screening" in points[2]


def test_a_value_of_a_wrong_type_is_found_before_anything_runs(sweep):
    message = refuse(sweep(axes={"optim.lr": [0.1, "fast"], "lora.r": [4, 0]}))
    assert message.startswith("3 of 4 points")
    assert "optim.lr='fast' is not usable: expected float." in message
    assert "lora.r=0 is not usable: it must be at least 1." in message


def test_points_that_are_the_same_run_are_refused(sweep):
    bundle = {"label": "b", "optim.lr": 0.3}
    message = refuse(sweep(axes={"optim.lr": [0.1, 0.2], "mine": [bundle]}))
    assert message.startswith("1 of 2 points")
    assert "lr-0.2_mine-b: its options are those of lr-0.1_mine-b" in message


def test_a_base_file_that_is_not_there_is_named(sweep):
    config = sweep()
    config.base = ["nowhere.yaml"]
    with pytest.raises(ConfigError, match=r"no file 'nowhere.yaml'"):
        make_plan(config)


def test_offline_points_share_one_distilled_set_of_their_own(sweep, tmp_path):
    axes = {"method": ["sft", "offline_sdft"], "optim.lr": [0.1, 0.2]}
    plan = make_plan(sweep(axes=axes, seeds=[0, 1]))
    (distilled,) = plan.distilled
    learns = [run for run in plan.runs if run.distilled]
    assert len(learns) == 4
    place = tmp_path / "sweep" / distilled.name
    assert {run.config.train.distilled for run in learns} == {str(place)}
    assert {run.config.train.targets for run in plan.runs if not run.distilled} == {"demonstrations"}
    writes = distilled.config
    assert (writes.distill.output_dir, writes.distill.resume) == (str(place), "auto")
    assert (writes.train.targets, writes.train.distilled, writes.train.seed) == ("policy", None, 5)
    assert writes.data == learns[0].config.data


def test_other_sampling_data_or_model_takes_another_distilled_set(sweep):
    offline = {"label": "offline", "train.targets": "distilled"}

    def sets(**axes) -> int:
        return len(make_plan(sweep(axes={"by": [offline], **axes})).distilled)

    assert sets(**{"optim.lr": [0.1, 0.2], "lora.r": [4, 8]}) == 1
    assert sets(**{"rollout.temperature": [0.5, 1.0]}) == 2
    assert sets(**{"context.template": ["reference", "prior_turn"], "data.limit": [5, 6]}) == 4
    assert sets(**{"screening.check": ["drop", "keep"], "model.name": ["a", "b"]}) == 4


def test_a_distilled_set_that_was_named_is_taken(sweep):
    named = {"train.targets": "distilled", "train.distilled": "mine"}
    for config in (
        sweep(options=named),
        sweep(axes={"by": [{"label": "offline", "method": "offline_sdft", "train.distilled": "mine"}]}),
    ):
        plan = make_plan(config)
        assert plan.distilled == ()
        assert plan.runs[0].config.train.distilled == "mine"


def test_a_score_that_no_run_will_have_is_refused(sweep):
    sets = [{"label": "code", "data": {"path": "x.jsonl"}}]
    known = ["eval/code/score", "eval/kl", "train/steps", "screen/keep_rate"]
    make_plan(sweep(options={"eval.sets": sets}, metrics=known))
    assert "no run has 'eval/cdoe/score'. There are: eval/code/score, eval/kl, eval/nll." in refuse(
        sweep(options={"eval.sets": sets}, metrics=["eval/cdoe/score"])
    )
    assert "'steps' is no metric" in refuse(sweep(metrics=["steps"]))


def test_a_sweep_of_nothing_and_a_metric_that_no_step_logs_are_refused(sweep):
    with pytest.raises(ConfigError, match="A sweep needs runs"):
        make_plan(SweepConfig())
    with pytest.raises(ConfigError, match=r"no step logs 'loss/totl'\. Did you mean 'loss/total'\?"):
        make_plan(sweep(axes={"optim.lr": [0.1]}, metrics=["loss/totl"]))
