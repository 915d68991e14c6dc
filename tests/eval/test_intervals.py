from __future__ import annotations

import math
import random

import pytest

from onpolicy_sdft.eval.intervals import mean_interval, ratio_interval, wilson_interval


@pytest.mark.parametrize(
    ("num_correct", "n", "low", "high"),
    [
        # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.959964, by hand
        (8, 10, 0.49016, 0.94332),
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (50, 100, 0.40383, 0.59617),
    ],
)
def test_wilson_agrees_with_numbers_worked_by_hand(num_correct, n, low, high):
    found = wilson_interval(num_correct, n)
    assert found == pytest.approx((low, high), abs=1e-5)


def test_wilson_is_its_formula():
    z, p, n = 1.959963984540054, 3 / 7, 7
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
    assert wilson_interval(3, 7) == pytest.approx(expected, abs=1e-12)


def test_the_interval_of_a_mean_holds_it_and_narrows_with_n():
    generator = random.Random(0)
    values = [generator.random() for _ in range(400)]
    low, high = mean_interval(values)
    few_low, few_high = mean_interval(values[:25])
    mean = sum(values) / len(values)
    half = 1.96 * math.sqrt(1 / 12 / 400)
    assert low == pytest.approx(mean - half, abs=0.01)
    assert high == pytest.approx(mean + half, abs=0.01)
    assert 3 < (few_high - few_low) / (high - low) < 5


def test_the_bootstrap_repeats_itself_for_one_seed():
    values = [0.0, 1.0, 0.5, 0.25, 0.0]
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)


def test_clusters_of_tokens_are_resampled_whole():
    """Tokens that agree within a completion carry the information of one draw, not of a hundred."""
    clustered = ratio_interval([100.0, 0.0] * 10, [100.0] * 20)
    independent = ratio_interval([1.0, 0.0] * 1000, [1.0] * 2000)
    assert clustered[1] - clustered[0] > 5 * (independent[1] - independent[0])


def test_a_ratio_weighs_completions_by_their_tokens():
    low, high = ratio_interval([900.0] * 8 + [0.0] * 8, [900.0] * 8 + [1.0] * 8)
    assert low > 0.98
    assert high <= 1.0


def test_values_that_never_vary_have_an_interval_of_no_width():
    assert mean_interval([0.5] * 10) == (0.5, 0.5)
    assert ratio_interval([3.0], [4.0]) == (0.75, 0.75)
