"""Axes to points: every combination but those left out, each with a name that stays when others are added. Pure."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onpolicy_sdft.config.sweep import (
    LABEL,
    METHOD,
    WHY,
    canonical,
    excluded_values,
    is_bundle_axis,
    shown_value,
)
from onpolicy_sdft.errors import ConfigError

_MAX_VALUE_LENGTH = 32
_MAX_NAME_LENGTH = 140


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of one axis."""

    axis: str
    shown: Any  # in names, tables and sweep.json
    options: Mapping[str, Any]  # by dotted name
    method: str | None = None  # YAML file of options, or a name of configs/methods; under the options


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of the axes."""

    name: str
    choices: tuple[Choice, ...]  # in the order of the axes

    @property
    def values(self) -> dict[str, Any]:
        """What stands for each axis in tables."""
        return {choice.axis: choice.shown for choice in self.choices}


@dataclass(frozen=True, slots=True)
class Excluded:
    """A combination that is not run."""

    values: Mapping[str, Any]
    why: str


@dataclass(frozen=True, slots=True)
class Grid:
    """All combinations."""

    points: tuple[Point, ...]
    excluded: tuple[Excluded, ...]


def grid(axes: Mapping[str, Sequence[Any]], exclude: Sequence[Mapping[str, Any]] = ()) -> Grid:
    """Combine all values of all axes, the last axis fastest.

    Args:
        axes: Checked axes of a sweep (:func:`onpolicy_sdft.config.sweep.check_sweep`).
        exclude: Its checked ``exclude``.

    Returns:
        The points and what was left out.

    Raises:
        ConfigError: Nothing is left, or two points would have the same name.
    """
    shorts = short_names(list(axes))
    points, excluded = [], []
    for choices in itertools.product(*([choice(axis, value) for value in values] for axis, values in axes.items())):
        values = {each.axis: each.shown for each in choices}
        entry = next((entry for entry in exclude if _matches(entry, values, axes)), None)
        if entry is None:
            points.append(Point(_point_name(shorts, values), choices))
        else:
            excluded.append(Excluded(values, str(entry.get(WHY, ""))))
    if not points:
        raise ConfigError("exclude leaves nothing of the axes. Fix: take some of it back.")
    names: dict[str, Mapping[str, Any]] = {}
    for point in points:
        if point.name in names:
            raise ConfigError(
                f"The points {names[point.name]!r} and {point.values!r} would both be called {point.name!r}. Fix: "
                f"bundles with a {LABEL} of their own."
            )
        names[point.name] = point.values
    return Grid(tuple(points), tuple(excluded))


def choice(axis: str, value: Any) -> Choice:
    """Return what a value of an axis means."""
    shown = shown_value(axis, value)
    if axis == METHOD:
        return Choice(axis, shown, {}, value)
    if not is_bundle_axis(axis):
        return Choice(axis, shown, {axis: value})
    method = value.get(METHOD)
    options = {name: option for name, option in value.items() if name not in (LABEL, METHOD)}
    return Choice(axis, shown, options, None if method is None else str(method))


def run_name(point: Point, seed: int) -> str:
    """Return the name of a point's run with a seed."""
    return "_".join(part for part in (point.name, f"seed-{seed}") if part)


def short_names(axes: Sequence[str]) -> dict[str, str]:
    """Return the last telling word of each axis, or the whole where two would be the same."""
    words = {axis: re.sub(r"\.name$", "", axis).rpartition(".")[2] for axis in axes}
    taken = list(words.values())
    return {axis: word if taken.count(word) == 1 else axis.replace(".", "-") for axis, word in words.items()}


def _point_name(shorts: Mapping[str, str], values: Mapping[str, Any]) -> str:
    name = "_".join(f"{shorts[axis]}-{_file_name_part(value)}" for axis, value in values.items())
    return name if len(name) <= _MAX_NAME_LENGTH else f"{name[:_MAX_NAME_LENGTH]}-{_digest(values)}"


def _file_name_part(value: Any) -> str:
    """Return a value as part of a file name, with a digest where something of it is lost."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    text = value.replace(" ", "-") if isinstance(value, str) else canonical(value)
    safe = re.sub(r"[^A-Za-z0-9.+_-]+", "-", text)
    if safe == text and len(safe) <= _MAX_VALUE_LENGTH:
        return safe
    return f"{safe[:_MAX_VALUE_LENGTH].strip('-')}-{_digest(value)}"


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:6]


def _matches(entry: Mapping[str, Any], values: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> bool:
    for axis, wanted in entry.items():
        if axis == WHY:
            continue
        known = [shown_value(axis, value) for value in axes[axis]]
        if canonical(values[axis]) not in map(canonical, excluded_values(wanted, known)):
            return False
    return True
