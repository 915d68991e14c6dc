"""Every number among the options has bounds, and they are read as they are written."""

from __future__ import annotations

import dataclasses
import math

import pytest

from onpolicy_sdft.config import schema, sequence, sweep
from onpolicy_sdft.config.bounds import Bounds, bounds_of, check_bounds, number
from onpolicy_sdft.errors import ConfigError

#: Numbers that may be anything: scores of a task, which may be no shares, and a bound on a difference in nats.
FREE = {"EvalConfig.stop_score", "StageConfig.target_score", "ScreeningConfig.min_support"}


def numbers() -> dict[str, dataclasses.Field]:
    members = [member for room in (schema, sequence, sweep) for member in vars(room).values()]
    return {
        f"{kind.__name__}.{option.name}": option
        for kind in filter(dataclasses.is_dataclass, members)
        for option in dataclasses.fields(kind)
        if {"int", "float"} & set(str(option.type).split(" | "))
    }


def test_every_number_has_bounds_or_is_known_to_be_free():
    assert {name for name, option in numbers().items() if bounds_of(option) is None} == FREE


@pytest.mark.parametrize("name", sorted(set(numbers()) - FREE))
def test_defaults_lie_within_and_not_a_number_does_not(name):
    option = numbers()[name]
    bounds = bounds_of(option)
    assert option.default is None or option.default in bounds
    assert math.nan not in bounds


@pytest.mark.parametrize(
    ("bounds", "text", "inside", "outside"),
    [
        (Bounds(at_least=1), "at least 1", (1, 9), (0, -math.inf)),
        (Bounds(at_least=0), "0 or more", (0, math.inf), (-1e-9,)),
        (Bounds(above=0), "above 0", (1e-9, math.inf), (0, -1)),
        (Bounds(above=1), "above 1", (1.5,), (1,)),
        (Bounds(at_least=0, at_most=1), "in [0, 1]", (0, 1), (-0.1, 1.1)),
        (Bounds(at_least=0, below=1), "in [0, 1)", (0, 0.99), (1,)),
        (Bounds(above=0, at_most=1), "in (0, 1]", (1, 0.1), (0, 1.1)),
        (Bounds(above=0, below=1), "in (0, 1)", (0.5,), (0, 1)),
        (Bounds(at_least=0, below=2**64), "in [0, 2**64)", (0, 2**64 - 1), (-1, 2**64, 10**23)),
    ],
)
def test_bounds_are_said_as_they_are_kept(bounds, text, inside, outside):
    assert str(bounds) == text
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in outside)


def test_numbers_in_lists_of_sections_and_of_several_values_are_found():
    config = schema.RunConfig()
    config.eval.sets = [schema.EvalSetConfig(), schema.EvalSetConfig()]
    config.eval.sets[1].data.limit = 0
    with pytest.raises(ConfigError, match=r"^eval\.sets\[1\]\.data\.limit=0 is not usable: .* at least 1, or null\.$"):
        check_bounds(config)

    @dataclasses.dataclass
    class Two:
        both: tuple[float, float] = number((0.5, 0.5), at_least=0, below=1)

    check_bounds(Two())
    with pytest.raises(ConfigError, match=r"both=\(0\.5, 1\.0\)"):
        check_bounds(Two((0.5, 1.0)))


@pytest.mark.parametrize("name", [name for name in numbers() if name.endswith(".seed")])
def test_a_seed_is_one_that_torch_takes(name):
    bounds = bounds_of(numbers()[name])
    assert 2**64 - 1 in bounds
    assert 2**64 not in bounds
