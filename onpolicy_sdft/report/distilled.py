"""What became of a distilled data set, as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onpolicy_sdft.report.drawing import BLUE, RED, new_figure, png_bytes, style
from onpolicy_sdft.runs.files import read_json, write_bytes_atomic


def draw_distilled(directory: Path) -> Path:
    """Draw the share of rows that were rewritten and, by reason, of those that were not.

    Args:
        directory: Of ``sdft distill``; its ``summary.json`` is read.

    Returns:
        The PNG file, ``acceptance.png``.
    """
    summary: Mapping[str, Any] = read_json(directory / "summary.json")
    total = max(1, summary["num_rows"])
    copied = summary["verbatim_rate"]
    bars = [("rewritten", summary["keep_rate"] - copied, BLUE), ("kept, a verbatim copy", copied, BLUE)]
    bars += [
        (f"refused: {reason}", count / total, RED)
        for reason, count in sorted(summary["reasons"].items(), key=lambda item: -item[1])
    ]
    figure, axes = new_figure()
    names, shares = [name for name, _, _ in bars], [share for _, share, _ in bars]
    drawn = axes.barh(names, shares, color=[colour for _, _, colour in bars])
    axes.bar_label(drawn, [f"{share:.1%}" for share in shares], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, *shares) * 1.1)
    axes.set_xlabel(f"share of the {summary['num_rows']} rows")
    style(axes)
    path = directory / "acceptance.png"
    write_bytes_atomic(path, png_bytes(figure))
    return path
