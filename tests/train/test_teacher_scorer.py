from __future__ import annotations

from typing import Any

import torch

from onpolicy_sdft.objectives.objective import Objective
from onpolicy_sdft.train.pairing import Pairing
from onpolicy_sdft.train.teacher_scorer import TeacherScorer
from onpolicy_sdft.types import NoiseKey, Rollout, TrainingRow

NAN = float("nan")


def row(ids: tuple[int, ...], target_ids: tuple[int, ...], num_skipped: int = 0) -> TrainingRow:
    logprobs = tuple(-0.1 * token for token in ids)
    rollout = Rollout(NoiseKey(0, 0, "a"), (1, 2), ids, logprobs, logprobs, (0.5,) * len(ids), "stop")
    return TrainingRow((1,), target_ids, (1, 2), rollout, num_skipped=num_skipped)


def test_an_end_that_was_not_drawn_has_no_sampling_logprob_of_another_token():
    weights: Any = None
    scorer = TeacherScorer(weights, "live", None, Objective(importance=True), 0)
    rows = [
        row((5, 6, 9), (5, 6, 7, 8)),  # stopped at another token; the template's end has two
        row((4, 9), (4, 8)),
        row((3, 2, 8), (3, 2, 8), num_skipped=1),
        TrainingRow((1,), (7, 8)),  # a demonstration
    ]
    (inputs,) = scorer([Pairing(100, 0).batch(rows, "cpu")])
    found, expected = inputs.sampling_logprobs_M, [-0.5, -0.6, NAN, NAN, -0.4, NAN, -0.2, -0.8, NAN, NAN]
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)
