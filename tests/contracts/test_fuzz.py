"""Configs, flags and data files that were changed at random are read, or refused with a way on."""

from __future__ import annotations

import pytest

from benchmarks.fuzz import cases


@pytest.mark.parametrize(
    ("kind", "number"),
    [("data", 150), ("config", 40), *(pytest.param(kind, 1000, marks=pytest.mark.slow) for kind in ("data", "config"))],
)
def test_what_is_changed_at_random_is_read_or_refused_with_a_way_on(kind, number, tokenizer):
    found = [(each, outcome) for each, outcome in cases(kind, 0, number, tokenizer)]
    assert not [(each, outcome) for each, outcome in found if outcome.kind not in ("read", "refused")]
    assert kind == "config" or {outcome.kind for _, outcome in found} == {"read", "refused"}
