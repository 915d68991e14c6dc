"""Bounds of options, which stand where the option does: ``lr: float = number(2e-4, above=0)``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from onpolicy_sdft.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """The numbers an option may have."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.at_least <= value <= self.at_most and (
            (self.above < value or self.above == -math.inf) and (value < self.below or self.below == math.inf)
        )

    def __str__(self) -> str:
        is_open = self.above > -math.inf
        low, high = (self.above if is_open else self.at_least), min(self.at_most, self.below)
        if high < math.inf:
            last = "2**64" if high == 2**64 else f"{high:g}"  # of seeds
            return f"in {'(' if is_open else '['}{low:g}, {last}{']' if self.at_most < math.inf else ')'}"
        if is_open:
            return f"above {low:g}"
        return "0 or more" if low == 0 else f"at least {low:g}"


def number(default: float | tuple[float, ...] | None, **bounds: float) -> Any:
    """Declare an option that is a number, several numbers, or null.

    Args:
        default: Its default.
        **bounds: Of :class:`Bounds`; null, where the type allows it, has none.
    """
    return dataclasses.field(default=default, metadata={"bounds": Bounds(**bounds)})


def bounds_of(option: dataclasses.Field[Any]) -> Bounds | None:
    """Return the bounds an option was declared with."""
    return option.metadata.get("bounds")


def check_bounds(section: Any, prefix: str = "") -> None:
    """Refuse numbers out of bounds, in a section and those inside it.

    Args:
        section: A dataclass of options.
        prefix: Of its options' names, with a dot.

    Raises:
        ConfigError: On the first one, with its name, value and bounds.
    """
    for option in dataclasses.fields(section):
        value, name = getattr(section, option.name), f"{prefix}{option.name}"
        for inner, inner_name in _inner_sections(value, name):
            check_bounds(inner, f"{inner_name}.")
        bounds = bounds_of(option)
        if bounds is None or value is None:
            continue
        if not all(each in bounds for each in (value if isinstance(value, tuple | list) else [value])):
            or_null = ", or null" if "None" in str(option.type) else ""
            raise ConfigError(f"{name}={value!r} is not usable: it must be {bounds}{or_null}.")


def _inner_sections(value: Any, name: str) -> Iterator[tuple[Any, str]]:
    if dataclasses.is_dataclass(value):
        yield value, name
    elif isinstance(value, list):
        yield from ((item, f"{name}[{index}]") for index, item in enumerate(value) if dataclasses.is_dataclass(item))
