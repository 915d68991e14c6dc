"""The look at bare answers and the teacher before the first step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import WORDS, questions, say, write_run

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.config.schema import RunConfig, ScreeningConfig
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.first_probe import probe_first
from onpolicy_sdft.runs.files import read_json, read_jsonl
from onpolicy_sdft.screening.review import BarePromptReview, Prompts
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks.math_word_problem import MathWordProblem
from onpolicy_sdft.types import Demonstration, Measures, NoiseKey, PromptPair, Rollout, Target, Turn


@pytest.fixture
def files(tmp_path: Path, model_dir: Path) -> dict[str, Path]:
    options = {
        "lora.dropout": 0.2, "rollout.max_new_tokens": 10, "rollout.num_samples": 2, "screening.pick": "best",
        "screening.surprise": "drop", "screening.max_surprise": 5.6, "probe.num_examples": 4, "optim.lr": 0.01,
        "optim.warmup_steps": 1, "train.batch_size": 3, "train.max_steps": 4, "train.checkpoint_steps": 2,
        "train.output_dir": tmp_path / "run", "eval.kl_prompts": 0, "eval.before_and_after": False,
        "eval.every_steps": 1, "eval.validation": [questions(tmp_path, limit=3)],
    }  # fmt: skip
    config = write_run(tmp_path, model_dir, say(*WORDS[:6]), **options)
    return {"config": config, "run": tmp_path / "run", "resumed": tmp_path / "resumed"}


def test_bare_answers_are_refreshed_at_validations_and_resumed_bit_for_bit(files, logged):
    fit(load_config(files["config"]))
    rows = read_jsonl(files["run"] / "metrics.jsonl")
    assert len({row["values"]["bare/surprise"] for row in rows}) == len(rows)  # a validation follows each step
    assert all("rollout/surprise" in row["values"] and "rollout/leak" in row["values"] for row in rows)
    record = read_jsonl(files["run"] / "rollouts.jsonl")[0]
    assert record["surprise"] > 0
    output = {"train.output_dir": str(files["resumed"])}
    fit(load_config(files["config"], **output, **{"train.max_steps": 2}))
    state = read_json(files["resumed"] / "checkpoints" / "step-000002" / "state.json")["state"]
    assert state["bare"]["num"] == 4
    assert state["limits"]["max_surprise"] == 5.6
    assert state["learned"]
    fit(load_config(files["config"], **output, **{"train.resume": "auto"}))

    def figures(run: Path) -> list[dict[str, float]]:
        values = [row["values"] for row in read_jsonl(run / "metrics.jsonl")]
        return [{k: v for k, v in each.items() if not k.startswith(("time/", "memory/")) and "per_second" not in k}
                for each in values]  # fmt: skip

    assert figures(files["resumed"]) == figures(files["run"])
    ends = [load_file(files[name] / "checkpoints" / "step-000004" / "trainable.safetensors") for name in
            ("run", "resumed")]  # fmt: skip
    assert all(bool((ends[0][name] == ends[1][name]).all()) for name in ends[0])


def test_settings_are_refused_before_the_seed_model_is_scored(files, monkeypatch):
    def refuse(*_: object) -> str:
        return "40% of the rollouts state the answer without the work"

    monkeypatch.setattr("onpolicy_sdft.eval.first_probe.teaches_shortcuts", refuse)
    with pytest.raises(ConfigError, match="This would teach shortcuts: 40% of the rollouts"):
        fit(load_config(files["config"], **{"eval.before_and_after": True}))
    assert not (files["run"] / "eval").exists()
    assert not list((files["run"] / "checkpoints").glob("*"))


WORK = "First there are 3 and then 4 more. Together that is 7. Twice that is 14. Then we add 5. " * 3
DEMONSTRATION = Demonstration("x", (Turn("user", "q"),), WORK + "The answer is 72.", {"answer": "72"})


def written(text: str, surprise: float) -> Target:
    ids = tuple(map(ord, text))
    pairs = PromptPair(DEMONSTRATION, (1,), (1, 2), tuple(map(ord, DEMONSTRATION.response)))
    rollout = Rollout(NoiseKey(0, 0, "x"), (1,), ids, (-surprise,) * len(ids), (0.0,) * len(ids), (0.1,) * len(ids),
                      "stop")  # fmt: skip
    return Target(pairs, ids, text, "keep", "", rollout, correct="72" in text,
                  measures=Measures(surprise, surprise, leak=surprise - 0.4))  # fmt: skip


class Looking:
    """A preview whose texts are given."""

    def __init__(self, bare: list[Target], taught: list[Target]) -> None:
        task, screening = MathWordProblem(), ScreeningConfig()
        self.screen = Screen(screening, task, lambda ids: "".join(map(chr, ids)))
        none: Any = None
        self.reviewer = BarePromptReview(screening, task, self.screen.decode, none, none, Prompts(none, none), 9, 0)
        self._bare, self._taught = bare, taught
        self.pairs = [target.pair for target in taught]

    def bare(self, step: int) -> list[Target]:
        return self._bare

    def taught(self, step: int) -> list[Target]:
        return self._taught


BARE = [written(WORK + "The answer is 72.", 0.17), written(WORK + "The answer is 5.", 0.2)] * 8


def test_a_teacher_that_states_the_answer_without_the_work_is_refused_first(logged):
    taught = [written("The answer is 72.", 1.6), written(WORK + "The answer is 72.", 0.4)] * 8
    with pytest.raises(
        ConfigError, match=r"50% of the rollouts .* without the work.*--context.template work"
    ) as caught:
        probe_first(RunConfig(), Looking(BARE, taught))  # type: ignore[arg-type]
    assert "--probe.action warn" in str(caught.value)
    config = RunConfig()
    config.probe.action = "warn"
    probe_first(config, Looking(BARE, taught))  # type: ignore[arg-type]
    assert logged[-1].startswith("warning: this may teach shortcuts")


def test_a_teacher_that_works_passes_and_sets_the_bounds(logged):
    probe = Looking(BARE, [written(WORK + "The answer is 72.", 0.4)] * 16)
    probe_first(RunConfig(), probe)  # type: ignore[arg-type]
    assert len(logged) == 2
    assert "16 bare answers, 8 right" in logged[0]
    assert "100% right" in logged[1]
    assert probe.reviewer.limits.max_surprise == pytest.approx(0.5)


def test_data_that_asks_for_answers_alone_is_warned_of(logged):
    terse = Demonstration("x", (Turn("user", "q"),), "#### 72", {"answer": "72"})
    taught = [
        dataclasses.replace(target, pair=dataclasses.replace(target.pair, demonstration=terse, response_ids=(1, 2)))
        for target in [written("The answer is 72.", 1.6)] * 16
    ]
    probe = Looking(BARE, taught)
    probe.pairs = [target.pair for target in taught]
    probe_first(RunConfig(), probe)  # type: ignore[arg-type]
    assert logged[1].startswith("warning: the demonstrations are answers alone: 2 tokens (median)")
