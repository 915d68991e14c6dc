"""Every shipped sweep: all of its points are runs that could be started, and some are run, on a tiny model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import WORDS, say, write_rows

from onpolicy_sdft.config.load import kept_parser, parse
from onpolicy_sdft.config.sweep import SweepConfig, load_sweep, shown_value
from onpolicy_sdft.errors import SdftError
from onpolicy_sdft.experiments.sweep import run_sweep
from onpolicy_sdft.experiments.sweep_plan import Plan, make_plan
from onpolicy_sdft.fitting.fit import fit
from onpolicy_sdft.offline.distill import run_distill
from onpolicy_sdft.runs.commands import Finish
from onpolicy_sdft.runs.files import read_json, read_jsonl
from onpolicy_sdft.runs.signals import Signals

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweep").glob("*.yaml"))
NAMES = [path.stem for path in SWEEPS]

#: Sweep -> the points that are run: what is least alike in it.
RUN: dict[str, list[dict[str, object]]] = {
    "context": [
        {"context.template": "prior_turn", "shown": "own and 1 other"},
        {"context.template": "work", "shown": "4 others"},
    ],
    "forgetting": [{"method": "sft"}],
    "forgetting_own_words": [{"method": "sdft"}],
    "learning_rate": [{"method": "sft", "optim.lr": 1e-4}],
    "lora_rank": [{"method": "sdft", "rank": "full"}],
    "objective_view": [
        {"objective.name": "jsd", "rollout.prompt": "teacher"},
        {"objective.name": "sampled_reverse_kl", "rollout.prompt": "student"},
    ],
    "on_policy": [{"written_by": "every 4 steps"}, {"written_by": "once"}],
    "screening": [{"verdict": "resample"}],
    "teacher_weights": [{"method": "sdft_kl", "teacher": "ema 5"}],
    "temperature": [{"rollout.temperature": 0}],
}


@pytest.fixture
def small(tmp_path: Path, model_dir: Path) -> list[str]:
    """Flags that make a shipped sweep tiny: model, data, steps and scores, never its axes."""
    data = write_rows(tmp_path / "rows.jsonl", say(*WORDS))
    sets = [
        {"label": label, "data": {"path": str(data), "limit": 2}, "task": {"name": "exact"}, "max_new_tokens": 3}
        for label in ("list_functions", "short_facts")
    ]
    options = {
        "model.name": str(model_dir), "model.dtype": "float32", "lora.r": 4, "data.name": "null",
        "data.path": str(data), "data.options": "{}", "data.limit": "null", "task.name": "exact", "task.options": "{}",
        "rollout.max_new_tokens": 6, "rollout.num_slots": 4, "rollout.deterministic": "true",
        "rollout.max_draft_tokens": 0, "train.batch_size": 3, "train.max_steps": 1, "train.precision": "fp32",
        "train.checkpoint_steps": "null", "eval.sets": json.dumps(sets), "eval.kl_prompts": 2,
        "eval.kl_max_new_tokens": 3,
    }  # fmt: skip
    options |= {f"screening.{reason}": "keep" for reason in ("check", "truncated", "looping", "empty", "length")}
    return [f"--{name}={value}" for name, value in options.items()]


def in_this_process(command: Sequence[str], log: Path) -> Finish:
    """Do a command's job without a process of its own and without drawing: thirty of those would take minutes."""
    verb, *arguments = command[command.index("onpolicy_sdft") + 1 :]
    config, _ = parse(kept_parser(f"sdft {verb}"), arguments)
    began, code = time.monotonic(), 0
    try:
        if verb == "train":
            outcome = fit(config)
            code = outcome.result.exit_code
            outcome.run.report_path.touch()  # without which it is not done
        else:
            run_distill(config, [])
    except SdftError as error:
        return Finish(2, str(error), time.monotonic() - began)
    return Finish(code, "", time.monotonic() - began)


def plan_of(config: SweepConfig, point: dict[str, object]) -> Plan:
    """Plan one point alone: planning all of them again would take most of the test's time."""
    axes = {axis: [v for v in values if shown_value(axis, v) == point[axis]] for axis, values in config.axes.items()}
    return make_plan(replace(config, axes=axes, exclude=[]))


def test_there_is_a_sweep_for_every_question():
    assert set(NAMES) == set(RUN)


@pytest.mark.parametrize("path", SWEEPS, ids=NAMES)
@pytest.mark.few(2)
def test_every_point_of_a_shipped_sweep_is_a_run_that_could_be_started(path):
    config, _ = load_sweep(["--config", str(path)])
    plan = make_plan(config)
    num_points = 1
    for values in config.axes.values():
        num_points *= len(values)
    assert len(plan.runs) == (num_points - len(plan.excluded)) * len(config.seeds)
    assert len(config.seeds) > 1, "a spread needs two runs"
    assert {run.config.model.name for run in plan.runs} == {"embedded:smollm2-135m-instruct"}
    assert config.output_dir == f"runs/sweep-{path.stem}"
    assert all(entry.why for entry in plan.excluded)
    text = path.read_text()
    assert text.startswith("# ")
    assert "?" in text.partition("\n#     sdft sweep")[0], "the comment says which question it answers"
    assert f"sdft sweep --config configs/sweep/{path.name}\n" in text


@pytest.mark.parametrize("path", SWEEPS, ids=NAMES)
@pytest.mark.few(2)
def test_a_shipped_sweep_runs_and_its_table_has_what_it_asks_for(path, small, tmp_path):
    config, _ = load_sweep(["--config", str(path), *small, "--output_dir", str(tmp_path / "sweep"), "--seeds=[0]"])
    runs = [run for point in RUN[path.stem] for run in plan_of(config, point).runs]
    assert len(runs) == len(RUN[path.stem])
    run_and_compare(config, Plan(tuple(runs), ()))


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=NAMES)
def test_every_point_of_a_shipped_sweep_runs(path, small, tmp_path):
    config, _ = load_sweep(["--config", str(path), *small, "--output_dir", str(tmp_path / "sweep"), "--seeds=[0]"])
    run_and_compare(config, make_plan(config))


def run_and_compare(config: SweepConfig, plan: Plan) -> None:
    """Run a plan; every run must be done, and every score be that of its run directory."""
    outcome = run_sweep(config, plan, in_this_process, Signals())
    assert [(row.state, row.reason) for row in outcome.rows] == [("done", "")] * len(plan.runs)
    for metric in config.metrics:
        assert any(metric in row.scores for row in outcome.rows), metric
    for row in outcome.rows:
        summary = read_json(outcome.directory / row.run / "eval" / "summary.json")
        assert row.scores["eval/short_facts/score"] == summary["after"]["sets"][1]["score"]
        assert row.scores["eval/kl"] == summary["after"]["kl"]["mean"]
        assert row.scores["train/steps"] == len(read_jsonl(outcome.directory / row.run / "metrics.jsonl"))
