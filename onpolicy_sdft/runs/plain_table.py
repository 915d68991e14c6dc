"""Aligned plain-text tables, for logs, files and terminals that are none."""

from __future__ import annotations

from collections.abc import Sequence


def is_number(cell: str) -> bool:
    """Tell whether a cell reads as a figure, and so is aligned to the right.

    Args:
        cell: Text of the cell, e.g. ``"0.438 [0.32, 0.56]"`` or ``"12%"``.

    Returns:
        True for text that starts like a number, and for the empty cell and the dash.
    """
    head = cell.split(" ", 1)[0].rstrip("%").replace(",", "").lstrip("+-")
    return cell in ("", "-") or head.replace(".", "", 1).isdigit()


def numeric_columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Tell which columns hold figures only.

    Args:
        columns: Column headings.
        rows: Cells, one sequence a row, as long as ``columns``.

    Returns:
        One flag a column; all false without rows.
    """
    return [bool(rows) and all(is_number(row[i]) for row in rows) for i in range(len(columns))]


def format_plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay a table out in columns of equal width, figures to the right.

    Args:
        columns: Column headings.
        rows: Cells, one sequence a row, as long as ``columns``.

    Returns:
        Lines joined by newlines, without a final one.
    """
    cells = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    to_right = numeric_columns(columns, rows)
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, to_right, strict=True)
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
