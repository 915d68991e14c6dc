"""The metrics of a sequence, on matrices worked out by hand, and their intervals against a plain bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from onpolicy_sdft.experiments import metrics

#: Three tasks: row 0 the base model, then after each stage.
HAND = np.array(
    [
        [0.10, 0.20, 0.30],
        [0.80, 0.25, 0.20],
        [0.60, 0.90, 0.35],
        [0.50, 0.70, 0.60],
    ]
)


def test_metrics_of_a_matrix_worked_out_by_hand():
    assert metrics.average_accuracy(HAND) == pytest.approx((0.50 + 0.70 + 0.60) / 3)
    assert metrics.backward_transfer(HAND) == pytest.approx(((0.50 - 0.80) + (0.70 - 0.90)) / 2)
    assert metrics.forward_transfer(HAND) == pytest.approx(((0.25 - 0.20) + (0.35 - 0.30)) / 2)
    assert metrics.forgetting_by_task(HAND) == pytest.approx([0.80 - 0.50, 0.90 - 0.70])
    assert metrics.forgetting(HAND) == pytest.approx(0.25)
    assert metrics.acquisition(HAND) == pytest.approx(((0.80 - 0.10) + (0.90 - 0.25) + (0.60 - 0.35)) / 3)
    assert metrics.intransigence(HAND, np.array([0.9, 0.9, 0.9])) == pytest.approx((0.1 + 0.0 + 0.3) / 3)


def test_forgetting_counts_scores_before_the_own_stage_but_not_the_base_models():
    """As published: the maximum is over all earlier stages (Chaudhry et al. 2018); here the best is one of them."""
    scores = np.array([[0.9, 0.9, 0.0], [0.5, 0.7, 0.0], [0.4, 0.6, 0.0], [0.3, 0.2, 0.5]])
    assert metrics.forgetting_by_task(scores) == pytest.approx([0.5 - 0.3, 0.7 - 0.2])


def test_a_task_that_got_better_has_negative_forgetting_and_positive_transfer():
    scores = np.array([[0.0, 0.0], [0.4, 0.1], [0.6, 0.5]])
    assert metrics.forgetting(scores) == pytest.approx(-0.2)
    assert metrics.backward_transfer(scores) == pytest.approx(0.2)


def test_one_task_forgets_nothing():
    scores = np.array([[0.1], [0.7]])
    found = {name: float(statistic(scores, np.zeros((2, 0)))) for name, statistic in metrics.METRICS.items()}
    assert found == pytest.approx(
        {"average_accuracy": 0.7, "acquisition": 0.6, "forgetting": 0, "backward_transfer": 0, "forward_transfer": 0,
         "retention_change": 0}
    )  # fmt: skip


def test_retention_is_the_change_from_the_seed_model_to_the_last_stage():
    retained = np.array([[0.5, 0.4], [0.9, 0.9], [0.3, 0.5]])
    assert metrics.retention_change(retained) == pytest.approx(((0.3 - 0.5) + (0.5 - 0.4)) / 2)


def test_the_matrix_of_records_is_their_mean():
    records = [np.array([[0, 1, 0, 0], [1, 1, 1, 0]]), np.array([[0, 0], [1, 0]])]
    assert metrics.matrix(records).tolist() == [[0.25, 0.0], [0.75, 0.5]]


def plain_bootstrap(correct, statistic, num_resamples=4000):
    """Resample each set's examples in a loop, the same ones for every stage."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(num_resamples):
        resampled = []
        for records in correct:
            chosen = rng.integers(0, records.shape[1], records.shape[1])
            resampled.append(records[:, chosen].mean(axis=1))
        found.append(float(statistic(np.stack(resampled, axis=1), None)))
    return np.percentile(found, [2.5, 97.5])


@pytest.mark.parametrize("name", ["average_accuracy", "forgetting", "backward_transfer", "forward_transfer"])
def test_the_interval_is_that_of_a_plain_paired_bootstrap(name):
    rng = np.random.default_rng(0)
    correct = [(rng.random((4, n)) < 0.5).astype(float) for n in (80, 120, 60)]
    statistic = metrics.METRICS[name]
    low, high = metrics.paired_interval(correct, [], statistic)
    assert (low, high) == pytest.approx(plain_bootstrap(correct, statistic), abs=0.02)


def test_pairing_shows_that_a_change_on_the_same_questions_is_sure():
    """Ten of a hundred questions were lost and none won: unpaired, that would be within the noise."""
    before = np.repeat([1.0, 0.0], 50)
    after = before.copy()
    after[:10] = 0.0
    correct = [np.stack([before, before, after]), np.zeros((3, 10))]
    low, high = metrics.paired_interval(correct, [], metrics.METRICS["backward_transfer"])
    assert high < 0
    assert low == pytest.approx(-0.16, abs=0.02)


def test_seeds_are_resampled_together_and_averaged():
    rng = np.random.default_rng(0)
    one = (rng.random((3, 50)) < 0.5).astype(float)
    other = (rng.random((3, 40)) < 0.5).astype(float)
    alone = metrics.paired_interval([one, other], [], metrics.METRICS["forgetting"])
    twice = [np.stack([each, each], axis=1) for each in (one, other)]
    same = metrics.paired_interval(twice, [], lambda a, b: metrics.METRICS["forgetting"](a, b).mean(axis=0))
    assert same == pytest.approx(alone)


def test_one_example_has_no_interval():
    low, high = metrics.paired_interval([np.ones((2, 1))], [], metrics.METRICS["average_accuracy"])
    assert np.isnan([low, high]).all()


def test_mcnemar_is_the_sign_test_of_the_discordant_questions():
    a = [True] * 8 + [False] * 2 + [True] * 5
    b = [False] * 8 + [True] * 2 + [True] * 5
    found = metrics.mcnemar(a, b)
    assert (found["only_a"], found["only_b"], found["n"]) == (8, 2, 15)
    assert found["p"] == pytest.approx(2 * sum(_choose(10, k) for k in range(3)) / 2**10)
    assert metrics.mcnemar(a, a)["p"] == 1.0
    with pytest.raises(ValueError, match="same questions"):
        metrics.mcnemar([True], [True, False])


def _choose(n, k):
    from math import comb

    return comb(n, k)
