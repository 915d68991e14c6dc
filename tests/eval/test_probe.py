from __future__ import annotations

import json

from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.eval.probe import run_probe


def test_a_probe_times_learning_as_a_run_would_learn(tmp_path, model_dir):
    rows = [{"prompt": f"say {word}", "response": word} for word in ("one", "two", "three", "four")]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{name: {model_dir}, gradient_checkpointing: true}}\ndata: {{path: {data}}}\ntask: {{name: exact}}\n"
        "rollout: {max_new_tokens: 6}\nlora: {r: 4}\ntrain: {batch_size: 4}\n"
    )
    outcome = run_probe(load_config(config), ["prior_turn"], [1.0], 4)
    assert outcome.learning_seconds > 0
    assert [row.template for row in outcome.rows] == ["bare", "prior_turn"]
