from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from onpolicy_sdft.rollout.noise import gumbel_noise, key_words
from onpolicy_sdft.types import NoiseKey


def noise(keys, position=0, vocab_size=50):
    ids = torch.arange(vocab_size, dtype=torch.int32)[None]
    return gumbel_noise(key_words(keys), torch.full((len(keys),), position), ids)


def test_noise_is_the_same_for_the_same_key_whatever_the_batch():
    keys = [NoiseKey(0, 1, f"example {i}") for i in range(5)]
    together = noise(keys)
    for row, key in enumerate(keys):
        assert torch.equal(together[row], noise([key])[0])


@pytest.mark.parametrize(
    "other",
    [
        NoiseKey(1, 1, "a"),
        NoiseKey(0, 2, "a"),
        NoiseKey(0, 1, "b"),
        NoiseKey(0, 1, "a", 1),
        NoiseKey(0, 1, "a", 0, 1),
    ],
    ids=["seed", "step", "example", "sample", "attempt"],
)
def test_every_part_of_the_key_changes_the_noise(other):
    assert not torch.isclose(noise([NoiseKey(0, 1, "a")]), noise([other])).any()


def test_positions_have_their_own_noise():
    key = [NoiseKey(0, 1, "a")]
    rows = torch.cat([noise(key, position) for position in range(64)])
    assert len(set(rows[:, 0].tolist())) == 64


def test_numbers_in_a_key_cannot_be_mistaken_for_each_other():
    assert not torch.equal(noise([NoiseKey(1, 11, "a")]), noise([NoiseKey(11, 1, "a")]))


def test_the_noise_is_standard_gumbel():
    values = torch.cat([noise([NoiseKey(0, step, "a")], p, 997)[0] for step in range(40) for p in range(5)])
    assert stats.kstest(values.numpy()[::3], "gumbel_r").pvalue > 1e-3
    assert values.isfinite().all()


@pytest.mark.parametrize("shift", ["vocabulary", "position", "example"])
def test_neighbouring_noise_is_uncorrelated(shift):
    keys = [NoiseKey(0, 0, str(i)) for i in range(400)]
    values = noise(keys, 0, 400)
    if shift == "vocabulary":
        a, b = values[:, :-1], values[:, 1:]
    elif shift == "position":
        a, b = values, noise(keys, 1, 400)
    else:
        a, b = values[:-1], values[1:]
    r = np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]
    assert abs(r) < 4 / np.sqrt(a.numel())


def test_argmax_of_log_p_plus_noise_draws_from_p():
    p = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    keys = [NoiseKey(7, step, "x") for step in range(20_000)]
    drawn = (p.log() + noise(keys, 3, 5)).argmax(-1)
    counts = torch.bincount(drawn, minlength=5).numpy()
    assert stats.chisquare(counts, p.numpy() * len(keys)).pvalue > 1e-3


def test_the_global_random_state_is_not_used():
    before = torch.get_rng_state()
    noise([NoiseKey(0, 0, "a")])
    assert torch.equal(before, torch.get_rng_state())


def test_known_values_never_change():
    """A checkpoint of another day must draw the same tokens."""
    values = noise([NoiseKey(3, 14, "example-15", 9, 2)], 6, 4)[0]
    torch.testing.assert_close(values, torch.tensor(KNOWN), rtol=1e-6, atol=1e-6)


KNOWN = [3.7653558, 2.4776287, -0.0694580, 0.4328339]
