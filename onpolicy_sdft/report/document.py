"""What a report holds, in whatever form it is written: parts, sections and their blocks. Each block names its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onpolicy_sdft.report.tables import TextTable

Rows = Sequence[Mapping[str, Any]]

_WIDE_PIXELS = 1000

#: What a file of another shape than expected raises while it is taken apart.
_OF_ANOTHER_SHAPE = (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError)


@dataclass(frozen=True, slots=True)
class Table:
    """A table as text, and the figures behind it."""

    name: str
    title: str
    text: TextTable
    data: tuple[Mapping[str, Any], ...]
    sources: tuple[str, ...]
    caption: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot."""

    name: str  # of its file, without the ending
    title: str
    caption: str
    png: bytes
    sources: tuple[str, ...]

    @property
    def is_wide(self) -> bool:
        """Whether it needs the width of the page to be read."""
        return int.from_bytes(self.png[16:20]) > _WIDE_PIXELS


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of those that sum a run up."""

    title: str
    text: str
    value: Any


@dataclass(frozen=True, slots=True)
class Tiles:
    """The figures that sum a run up."""

    name: str
    tiles: tuple[Tile, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A statement with its figures."""

    name: str
    text: str
    data: Any
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Text of many lines as it stands in a file, folded on the page."""

    name: str
    title: str
    text: str
    sources: tuple[str, ...]


Block = Table | Picture | Tiles | Sentence | Listing


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks under one heading."""

    title: str
    blocks: tuple[Block, ...]
    is_summary: bool = False  # also printed by the command that made the results


@dataclass(frozen=True, slots=True)
class RolloutLog:
    """The rollouts that a run recorded."""

    run: str
    source: str
    records: Rows


@dataclass(slots=True)
class Part:
    """What there is to say of one run, group of runs, sequence, comparison, sweep or shift."""

    title: str
    kind: str
    subtitle: str = ""
    missing: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    logs: list[RolloutLog] = field(default_factory=list)

    def add(self, title: str, *blocks: Iterable[Block | None], is_summary: bool = False) -> None:
        """Add a section; nothing where there are no blocks."""
        there = tuple(block for group in blocks for block in group if block is not None)
        if there:
            self.sections.append(Section(title, there, is_summary))

    def attempt(self, source: str, what: str, make: Callable[[], Iterable[Block | None]]) -> list[Block]:
        """Return the blocks made from a file; one of another shape than expected is named as missing.

        Args:
            source: The file.
            what: What is made of it.
            make: Makes the blocks.
        """
        try:
            return [block for block in make() if block is not None]
        except _OF_ANOTHER_SHAPE as error:
            self.missing.append(f"{source}: {what} (not of the expected form: {type(error).__name__}: {error})")
            return []


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report."""

    title: str
    parts: tuple[Part, ...]

    def pictures(self) -> list[Picture]:
        """Return all pictures, in order."""
        blocks = (block for part in self.parts for section in part.sections for block in section.blocks)
        return [block for block in blocks if isinstance(block, Picture)]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table that is made from records."""

    key: str
    title: str
    show: Callable[[Any], str]


def make_table(
    name: str,
    title: str,
    columns: Sequence[Column],
    rows: Rows,
    sources: Sequence[str],
    *,
    caption: str = "",
    notes: Sequence[str] = (),
) -> Table | None:
    """Show records as a table.

    Args:
        name: Of the table, in the JSON form.
        title: Heading.
        columns: What to show of each record; a record may lack a key.
        rows: Records, all of which go into the JSON form.
        sources: Files that the records come from.
        caption: How to read it.
        notes: Footnotes.

    Returns:
        The table, or None without records.
    """
    if not rows:
        return None
    cells = tuple(tuple(_cell(column, row) for column in columns) for row in rows)
    text = TextTable(tuple(column.title for column in columns), cells)
    return Table(name, title, text, tuple(rows), tuple(sources), caption, tuple(notes))


def used(columns: Iterable[Column], rows: Rows) -> list[Column]:
    """Return the columns that any record has something for; a zero is something, no flag set is not."""
    return [column for column in columns if any(_is_there(row.get(column.key)) for row in rows)]


def plain(value: Any) -> str:
    """Show a name, a flag or a number of any kind."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def count(value: float) -> str:
    """Show a number of things."""
    return f"{value:,.0f}"


def share(value: float) -> str:
    """Show a share in per cent."""
    return f"{value:.0%}"


def decimals(digits: int) -> Callable[[Any], str]:
    """Return a way to show numbers with so many decimals."""
    return lambda value: f"{value:,.{digits}f}"


def estimate(value: Mapping[str, Any]) -> str:
    """Show ``{"value", "low", "high"}``, a figure with its interval."""
    return interval(value["value"], value.get("low"), value.get("high"))


def estimate_below(value: Mapping[str, Any]) -> str:
    """Show a figure with its interval on a line of its own, in tables of many columns."""
    return estimate(value).replace(" [", "\n[")


def interval(value: float | None, low: float | None, high: float | None, digits: int = 3) -> str:
    """Show a figure with its interval where it has one."""
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _is_there(value: Any) -> bool:
    return value is not None and value is not False and value != ""


def _cell(column: Column, row: Mapping[str, Any]) -> str:
    value = row.get(column.key)
    return "-" if value is None or value == "" else column.show(value)
