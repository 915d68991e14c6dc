from __future__ import annotations

from tiny import WORDS, say, write_run

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.eval.probe import run_probe


def test_a_probe_times_learning_as_a_run_would_learn(tmp_path, model_dir):
    options = {"model.gradient_checkpointing": True, "rollout.max_new_tokens": 6}
    config = write_run(tmp_path, model_dir, say(*WORDS[:4]), **options)
    outcome = run_probe(load_config(config), ["prior_turn"], [1.0], 4)
    assert outcome.learning_seconds > 0
    assert [row.template for row in outcome.rows] == ["bare", "prior_turn"]
