from __future__ import annotations

import pytest

from onpolicy_sdft.build.method import make_sampling
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.types import RecordOptions

KL = {"objective.name": "forward_kl"}
TOP = {**KL, "objective.support": "teacher", "objective.num_kept": 8}


@pytest.mark.parametrize(
    ("options", "record"),
    [
        ({}, RecordOptions()),
        (KL, RecordOptions(hidden=True)),
        (TOP, RecordOptions(top_k=8)),
        ({**KL, "rollout.prompt": "student"}, RecordOptions()),  # not written by the distribution that is learned
        ({**KL, "rollout.decode_copy": "bfloat16"}, RecordOptions()),  # written under rounded weights
        ({**KL, "model.dtype": "bfloat16"}, RecordOptions()),  # adapters merged into bfloat16
        ({**KL, "model.dtype": "bfloat16", "rollout.merge_adapter": False}, RecordOptions(hidden=True)),
    ],
)
def test_laws_are_recorded_only_where_rollouts_are_written_under_them(options, record):
    assert make_sampling(load_config(**options), num_steps=1).record == record
