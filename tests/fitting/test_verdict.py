"""The last line of a run says worse by the gate's own rule."""

from __future__ import annotations

import json

from onpolicy_sdft.config.schema import GateConfig
from onpolicy_sdft.fitting.verdict import RunVerdict, reach_verdict
from onpolicy_sdft.runs.directory import RunDirectory


def verdict(tmp_path, **num_right_after: int) -> RunVerdict:
    """What is said of sets of 100 rows, all right before."""
    run = RunDirectory.create(tmp_path / "run")
    for stage in ("before", "after"):
        for label, num_right in num_right_after.items():
            path = run.eval_records_path(stage, label)
            path.parent.mkdir(parents=True, exist_ok=True)
            rights = [stage == "before" or number < num_right for number in range(100)]
            rows = [{"example_id": str(number), "correct": right} for number, right in enumerate(rights)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"sets": [{"label": label, "score": 1.0} for label in num_right_after]}
    run.eval_summary_path.write_text(json.dumps({"before": stage, "after": stage}))
    return reach_verdict(run, None, GateConfig(max_p_value=0.001), {"before": stage, "after": stage})


def test_a_small_drop_of_many_rows_is_lower_and_not_worse(tmp_path):
    found = verdict(tmp_path, test=90)  # p = 2 ** -10
    assert not found.is_worse
    assert found.text.startswith("lower than at the start, by no more than gate.max_drop=0.1 or perhaps by chance, on")
    assert "test 1.000 -> 0.900" in found.text


def test_a_large_drop_is_worse_and_a_set_among_several_needs_more_evidence(tmp_path):
    assert verdict(tmp_path / "one", test=89).is_worse  # p = 2 ** -11
    assert not verdict(tmp_path / "three", test=89, others=100, more=100).is_worse
    found = verdict(tmp_path / "clear", test=80, others=100, more=100)
    assert found.is_worse
    assert found.text == "WORSE THAN THE START on test 1.000 -> 0.800 (20 rows lost, 0 gained of 100, p = 9.5e-07)"
