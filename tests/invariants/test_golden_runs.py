"""Small runs give the tokens and losses on record; on the processor they were made on the losses to 1e-5."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase

import golden_runs
import pytest
import torch

from onpolicy_sdft.runs.files import read_jsonl
from onpolicy_sdft.runs.metrics import METRICS

RECORDS = json.loads(golden_runs.RECORDS.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", golden_runs.RUNS)
@pytest.mark.few(4)
def test_a_small_run_gives_what_is_on_record(name, model_dir, tmp_path):
    expected, made = RECORDS["runs"][name], golden_runs.make(name, model_dir, tmp_path)
    close = 1e-5 if golden_runs.facts() == RECORDS["facts"] else 1e-3
    assert made["texts"] == expected["texts"]
    for ours, theirs in zip(made["steps"], expected["steps"], strict=True):
        assert ours == pytest.approx(theirs, rel=close)
    assert (made["kl"], made["mean_length"]) == pytest.approx((expected["kl"], expected["mean_length"]), rel=close)
    logged = {key for path in tmp_path.rglob("metrics.jsonl") for row in read_jsonl(path) for key in row["values"]}
    assert logged
    assert not [key for key in logged if not any(fnmatchcase(key, metric.name) for metric in METRICS)], (
        "runs/metrics.py names every metric"
    )
