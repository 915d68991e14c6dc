"""A comparison of two methods on tiny tasks: fair, resumable, and its table is that of its sequences."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from onpolicy_sdft.config.load import load_config, load_plan
from onpolicy_sdft.config.sequence import CompareConfig, MethodConfig, SequenceConfig
from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.experiments.compare import check_comparison, choose, run_comparison, trials
from onpolicy_sdft.experiments.sequence import Interrupted
from onpolicy_sdft.experiments.sequence_plan import plan_sequence
from onpolicy_sdft.runs.claim import claimed
from onpolicy_sdft.runs.commands import Finish
from onpolicy_sdft.runs.files import read_json

ROOT = Path(__file__).parents[2]
COMPARISONS = sorted((ROOT / "configs" / "compare").glob("*.yaml"))
SEQUENCES = sorted([*(ROOT / "configs" / "continual").glob("*.yaml"), ROOT / "configs/recipes/tool_use_science.yaml"])


@pytest.fixture
def comparison(tmp_path: Path) -> CompareConfig:
    plain = tmp_path / "sft.yaml"
    plain.write_text("train: {targets: demonstrations}\n")
    methods = {"sft": MethodConfig(files=[str(plain)]), "sdft": MethodConfig()}
    return CompareConfig(methods=methods, seeds=[0, 1], lrs=[0.01, 0.02], output_dir=str(tmp_path / "compare"))


def test_an_interrupted_comparison_goes_on_and_tables_all_methods_and_seeds(tiny, in_process, comparison, tmp_path):
    config = dataclasses.replace(comparison, joint=["sft"])
    in_process.before = lambda command: Finish(130, "", 0.0) if "sdft-seed0" in command[-1] else None
    with pytest.raises(Interrupted):
        run_comparison(config, tiny(), [])
    in_process.before, in_process.commands = lambda command: None, []
    found = read_json(run_comparison(config, tiny(), []))
    went_on = [Path(command[-1]).parent.name for command in in_process.commands]
    assert went_on == [*["sdft-seed0"] * 2, *["sft-seed1"] * 2, *["sdft-seed1"] * 2, "sft-joint"]
    output = tmp_path / "compare"
    assert [(row["method"], row["seed"], row["joint"]) for row in found["rows"]] == [
        ("sft", 0, False), ("sdft", 0, False), ("sft", 1, False), ("sdft", 1, False), ("sft", 0, True),
    ]  # fmt: skip
    for method in ("sft", "sdft"):
        values = [
            read_json(output / row["sequence"] / "sequence.json")["metrics"]["average_accuracy"]["value"]
            for row in found["rows"]
            if row["method"] == method and not row["joint"]
        ]
        entry = found["over_seeds"][method]["average_accuracy"]
        assert entry["values"] == values
        assert entry["mean"] == pytest.approx(np.mean(values))
        assert entry["low"] <= entry["mean"] <= entry["high"]
    assert sum(row["chosen"] for row in found["tuning"]) == 2
    assert {(row["seed"], row["label"]) for row in found["mcnemar"]} == {
        (s, t) for s in (0, 1) for t in ("red", "blue")
    }
    difference = next(row for row in found["differences"] if row["metric"] == "average_accuracy")
    means = [found["over_seeds"][name]["average_accuracy"]["mean"] for name in ("sft", "sdft")]
    assert difference["value"] == pytest.approx(means[0] - means[1])
    assert len(found["intransigence"]["sft"]["values"]) == 2
    # The base model is scored once for all sequences, and once for all trials.
    measured = [path for path in output.rglob("summary.json") if "taken_from" not in read_json(path).get("before", {})]
    assert len(measured) == 2
    in_process.commands = []
    assert read_json(run_comparison(config, tiny(), [])) == found
    assert in_process.commands == []
    for file, option in ((tmp_path / "blue.jsonl", "eval.sets blue"), (tmp_path / "red.jsonl", "data.path")):
        before = file.read_text()
        file.write_text(before.replace("e", "E"))
        with pytest.raises(RunDirectoryError, match=rf"stage-1-red is there already, .*{option}.*{file.name}"):
            run_comparison(config, tiny(), [])
        file.write_text(before)


@pytest.mark.slow
def test_a_method_that_stopped_learning_is_a_result_and_is_not_tried_again(tiny, in_process, comparison):
    in_process.before = lambda command: in_process.end_without_update(command) if "sdft-lr" in command[-1] else None
    config = dataclasses.replace(comparison, seeds=[0], lrs=[0.01])
    found = read_json(run_comparison(config, tiny(), []))
    (stopped,) = (row for row in found["tuning"] if row["method"] == "sdft")
    assert "made no update" in stopped["stopped"]
    assert not stopped["chosen"]
    assert [row["method"] for row in found["rows"]] == ["sft"]
    in_process.commands = []
    run_comparison(config, tiny(), [])
    assert in_process.commands == []


def test_of_equal_validation_scores_the_smaller_rate_is_chosen(comparison):
    tried = [{"method": "sft", "lr": lr, "score": score, "stopped": ""} for lr, score in ((3, 0.5), (1, 0.5), (2, 0.4))]
    assert choose("sft", tried) == 1.0
    assert choose("sdft", tried) is None


def test_rates_are_chosen_on_validation_questions_of_the_first_stage(tiny, comparison):
    tried = trials(comparison, tiny())
    assert [(trial.method, trial.lr) for trial in tried] == [
        ("sft", 0.01),
        ("sft", 0.02),
        ("sdft", 0.01),
        ("sdft", 0.02),
    ]
    (stage,) = plan_sequence(tried[0].sequence)
    assert [item.data.limit for item in stage.config.eval.sets] == [3]
    assert stage.config.optim.lr == 0.01


@pytest.mark.slow
def test_methods_can_be_compared_at_equal_tokens_or_at_the_same_acquisition(tiny, comparison):
    from onpolicy_sdft.experiments.compare import method_sequence

    tokens = dataclasses.replace(comparison, match="tokens", max_loss_tokens=500, max_steps=50)
    check_comparison(tokens, tiny())
    stages = plan_sequence(method_sequence(tokens, tiny(), "sft", 0, 0.1, Path("x")))
    assert {(s.config.train.max_loss_tokens, s.config.train.max_steps) for s in stages} == {(500, 50)}
    (joint,) = plan_sequence(method_sequence(tokens, tiny(), "sft", 0, 0.1, Path("x"), joint=True))
    assert joint.config.train.max_loss_tokens == 1000
    sequence = tiny()
    sequence = dataclasses.replace(
        sequence, stages=[dataclasses.replace(stage, target_score=0.5) for stage in sequence.stages]
    )
    same = dataclasses.replace(comparison, match="acquisition", max_steps=50)
    check_comparison(same, sequence)
    stage = plan_sequence(method_sequence(same, sequence, "sft", 0, 0.1, Path("x")))[1]
    assert stage.config.eval.stop_score == 0.5
    assert stage.config.eval.best_metric == "eval/validation/score"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seeds": []}, "at least one"),
        ({"seeds": [1, 1]}, "twice"),
        ({"match": "tokens"}, "needs max_loss_tokens"),
        ({"max_loss_tokens": 5}, "match=tokens only"),
        ({"match": "acquisition"}, "target_score"),
        ({"joint": ["sdtf"]}, "none of the methods"),
        ({"methods": {"a": MethodConfig(lrs=[1e-3]), "b": MethodConfig(lrs=[1e-3, 1e-4])}}, "not be equal"),
        ({"methods": {"a": MethodConfig(options={"optim.lrr": 1})}}, "nearest option"),
    ],
)
@pytest.mark.few(4)
def test_comparisons_that_would_not_be_fair_or_cannot_be_made_are_refused(tiny, comparison, options, named):
    with pytest.raises(ConfigError, match=named):
        check_comparison(dataclasses.replace(comparison, **options), tiny())


@pytest.mark.parametrize("path", SEQUENCES, ids=lambda path: path.name)
@pytest.mark.few(2)
def test_every_shipped_sequence_plans(path):
    assert path.read_text().startswith("# ")
    config = load_plan(SequenceConfig, "test", "", ["--config", str(path)])
    assert len(plan_sequence(config)) == len(config.stages)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if "full" in path.stem else ()) for path in COMPARISONS],
    ids=lambda path: path.name,
)
@pytest.mark.slow
def test_every_shipped_comparison_plans(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert path.read_text().startswith("# ")
    config = load_plan(CompareConfig, "test", "", ["--config", str(path)])
    files = [part for file in config.sequence for part in ("--config", file)]
    rates = config.lrs or [lr for method in config.methods.values() for lr in method.lrs]
    for lr in rates:  # each alone: planning every method at every rate would take most of the test's time
        load_config(**{"optim.lr": lr})
    check_comparison(dataclasses.replace(config, lrs=config.lrs[:1]), load_plan(SequenceConfig, "test", "", files))


@pytest.mark.slow
def test_a_second_comparison_in_a_directory_is_refused_and_writes_nothing(tiny, in_process, comparison, tmp_path):
    with (
        claimed(tmp_path / "compare", "output_dir", "comparison"),
        pytest.raises(RunDirectoryError, match="Another comparison is at work in output_dir="),
    ):
        run_comparison(comparison, tiny(), [])
    assert [path.name for path in (tmp_path / "compare").iterdir()] == [".lock"]
