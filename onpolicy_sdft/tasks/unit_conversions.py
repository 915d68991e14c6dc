"""Numbers that say one quantity twice: "0.75 hours, or 45 minutes", "1/6 ≈ 0.167", "0.75, or 75%"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from types import MappingProxyType

from onpolicy_sdft.tasks.quantities import Quantity

#: How much of the smallest unit of its line a unit is.
_UNITS = MappingProxyType(
    {
        name: (kind, factor)
        for kind, line in enumerate(
            (
                {"$ dollar dollars": 100, "¢ cent cents": 1},
                {"s sec second seconds": 1, "min mins minute minutes": 60, "h hr hrs hour hours": 3600,
                 "day days": 86400, "week weeks": 604800},
                {"month months": 1, "year years": 12},
                {"in inch inches": 1, "ft foot feet": 12, "yd yard yards": 36, "mile miles": 63360},
                {"mm": 1, "cm centimeters": 10, "m meter meters metres": 1000, "km kilometers kilometres": 10**6},
                {"g gram grams": 1, "kg kilogram kilograms": 1000},
                {"oz ounce ounces": 1, "lb lbs pound pounds": 16},
                {"ml milliliters": 1, "l liter liters litres": 1000},
                {"cup cups": 1, "pint pints": 2, "quart quarts": 4, "gallon gallons": 16},
            )
        )
        for names, factor in line.items()
        for name in names.split()
    }
)  # fmt: skip
_SHARE = -1  # the line of bare numbers and percent
_UNIT = re.compile(r"[\s$]{0,2}(%|¢|[^\W\d_]+)")
_FORMULA_END = re.compile(r"[^$\n]{0,60}\$(?!\d)")
_AGAIN = re.compile(r"[,(]\s?(?:or|i\.e\.|that is|which is)\b|[(≈]|\\approx\b")
_ABOUT = re.compile(r"≈|\\approx\b|\b(?:about|approximately|roughly)\b")


def converted(text: str, numbers: Sequence[Quantity], links: Sequence[str]) -> Fraction | None:
    """Return what numbers that belong together say, where they say it in several forms; None where they do not.

    Args:
        text: Where the numbers stand.
        numbers: Two or more.
        links: How each belongs to the next.
    """
    if not set(links) <= {"equals", "alternative"}:
        return None
    forms, is_about = [[numbers[0]]], False
    for left, right in pairwise(numbers):
        between = text[left.end : right.start]
        if _AGAIN.search(between):
            forms.append([])
            is_about = is_about or _ABOUT.search(between) is not None
        forms[-1].append(right)
    amounts = [_amount(text, form) for form in forms]
    first = amounts[0]
    if len(forms) == 1 or first is None:
        return None
    for form, amount in zip(forms[1:], amounts[1:], strict=True):
        if amount is None or amount[0] != first[0]:
            return None
        if amount[1] != first[1] and not (is_about and _is_rounded(text, forms[0], form, first[1], amount[1])):
            return None
    return next((form[0].value for form in forms if len(form) == 1), None)


def _amount(text: str, form: Sequence[Quantity]) -> tuple[int, Fraction] | None:
    """Return the line of units and how much of its smallest one a form is: "2 hours 15 minutes"."""
    units = [_unit(text, each) for each in form]
    factors = [factor for _, factor in units]
    if len({kind for kind, _ in units}) > 1 or (
        len(form) > 1 and (units[0][0] == _SHARE or factors != sorted(set(factors))[::-1])
    ):
        return None
    total = Fraction(0)
    for each, factor in zip(form, factors, strict=True):
        if each.value is None:
            return None
        total += each.value * factor
    return units[0][0], total


def _unit(text: str, number: Quantity) -> tuple[int, Fraction]:
    is_money = text[max(0, number.start - 2) : number.start].rstrip().endswith("$")
    if is_money and not _FORMULA_END.match(text, number.end):
        kind, factor = _UNITS["$"]
        return kind, Fraction(factor)
    found = _UNIT.match(text, number.end)
    name = found[1].lower() if found else ""
    kind, factor = _UNITS.get(name, (_SHARE, 1))
    return kind, Fraction(1, 100) if name == "%" else Fraction(factor)


def _is_rounded(
    text: str, left: Sequence[Quantity], right: Sequence[Quantity], exact: Fraction, near: Fraction
) -> bool:
    """Whether a decimal is what a fraction is rounded to."""
    if len(left) != 1 or len(right) != 1 or "/" not in text[left[0].start : left[0].end]:
        return False
    _, point, places = text[right[0].start : right[0].end].partition(".")
    unit = _unit(text, right[0])[1] / 10 ** len(places)
    return bool(point) and places.isdigit() and abs(exact - near) < unit
