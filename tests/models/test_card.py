"""The card of an exported model: what the hub reads of it, and what people do."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.fitting.export import model_facts
from onpolicy_sdft.models.card import CARD_MARK, model_card

METHODS = Path(__file__).parents[2] / "configs" / "methods"
SCORES = {
    "before": {"sets": [{"label": "test", "score": 0.25, "low": 0.1, "high": 0.4, "n": 20}], "kl": None},
    "after": {
        "sets": [{"label": "test", "score": 0.51234, "low": 0.3, "high": 0.7, "n": 20}],
        "kl": {"mean": 0.1, "low": 0.05, "high": 0.2, "num_completions": 4},
    },
}


def test_the_hub_reads_base_licence_data_and_scores(tiny_model, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    facts = model_facts(load_config(**{"data.name": "openai/gsm8k", "data.split": "train"}), "openai/gsm8k", "abc")
    text = model_card(tiny_model(), str(base), {**facts, "run": "first"}, SCORES)
    data = ModelCard(text).data
    assert (data.license, data.datasets, data.library_name) == ("mit", ["openai/gsm8k"], "transformers")
    assert data.base_model is None  # a folder of this machine means nothing there
    (result,) = data.eval_results
    assert (data.model_name, result.dataset_name, result.metric_value) == ("first", "test", 0.5123)
    assert CARD_MARK in text
    assert "* before: test 0.250" in text
    assert "KL(base || tuned) 0.1000" in text


@pytest.mark.parametrize(
    ("name", "licence", "base"),
    [("embedded:smollm2-135m-instruct", "apache-2.0", None), ("someone/no-such-model", None, "someone/no-such-model")],
)
def test_a_card_without_scores_claims_none(tiny_model, name, licence, base):
    data = ModelCard(model_card(tiny_model(), name, {}, {})).data
    assert (data.license, data.base_model, data.eval_results, data.datasets) == (licence, base, None, None)


def test_rows_of_this_machine_are_no_data_set_of_the_hub(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    for options in ({"data.path": str(path)}, {"data.name": str(path)}, {"data.name": "embedded:short_facts"}):
        assert "hub data set" not in model_facts(load_config(**options), "rows", "abc")


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("sft", {}, {"targets": "demonstrations", "objective": "nll"}),
        ("sdft", {}, {"targets": "rollouts under the teacher's prompt", "objective": "nll", "teacher weights": "live"}),
        (
            "sdft_kl",
            {},
            {"targets": "rollouts under the bare prompt", "objective": "reverse_kl", "teacher weights": "ema"},
        ),
        (
            "sdft_forward_kl",
            {},
            {"targets": "rollouts under the teacher's prompt", "objective": "forward_kl", "teacher weights": "live"},
        ),
        (
            "feedback",
            {"task.name": "exact"},
            {
                "targets": "rollouts under the teacher's prompt; the teacher is told of the student's own attempts",
                "objective": "nll",
                "teacher weights": "live",
            },
        ),
    ],
)
def test_a_card_says_by_its_options_how_a_model_was_made(method, options, said):
    facts = model_facts(load_config(METHODS / f"{method}.yaml", **options), "rows", "abc")
    others = {"data", "context template", "seed"}
    assert {name: value for name, value in facts.items() if name not in others} == said
