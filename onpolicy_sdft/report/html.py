"""One self-contained HTML page, and the page that every run gets."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from onpolicy_sdft.report.browser import Packed, pack
from onpolicy_sdft.report.charts import CHARTS
from onpolicy_sdft.report.compose import run_document
from onpolicy_sdft.report.document import Block, Document
from onpolicy_sdft.report.runs import SCORES
from onpolicy_sdft.report.tables import TextTable
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import write_bytes_atomic, write_text_atomic

_ASSETS = Path(__file__).with_name("assets")
STYLE, SCRIPT = ((_ASSETS / name).read_text(encoding="utf-8") for name in ("style.css", "rollouts.js"))
MAX_BYTES = 10_000_000  # of a page
_MAX_ROLLOUT_BYTES = 6_000_000
_LONG_CELL = 60  # characters
_SLACK_BYTES = 100_000  # for what is not known before the page is written


def build_report(run_directory: RunDirectory | Path | str) -> list[Path]:
    """Write ``report.html`` and ``plots/*.png`` of a run.

    The run may be unfinished: what is missing or damaged is named in the report.

    Args:
        run_directory: The run.

    Returns:
        Paths written, the page first.

    Raises:
        RunDirectoryError: There is no run at that place.
    """
    path = run_directory.path if isinstance(run_directory, RunDirectory) else run_directory
    run = RunDirectory.open(path)
    document = run_document(run)
    written = [run.report_path]
    pictures = {picture.name: picture.png for picture in document.pictures()}
    for name, png in pictures.items():
        written.append(run.plots_path / f"{name}.png")
        write_bytes_atomic(written[-1], png)
    for name in {SCORES, *CHARTS} - pictures.keys():  # an earlier report's, of data now gone
        (run.plots_path / f"{name}.png").unlink(missing_ok=True)
    write_text_atomic(run.report_path, render_page(document))
    return written


def render_page(document: Document, max_bytes: int = MAX_BYTES) -> str:
    """Render the page; every text of the runs is escaped.

    Args:
        document: What it says.
        max_bytes: Most bytes of the page: rollouts that do not fit are left out, and it says how many.

    Returns:
        The whole HTML document, with pictures and rollouts inside.
    """
    logs = [log for part in document.parts for log in part.logs]
    without = _render(document, pack([], 0))
    left = max_bytes - len(without.encode("utf-8", "replace")) - len(SCRIPT) - _SLACK_BYTES
    return _render(document, pack(logs, min(left, _MAX_ROLLOUT_BYTES)))


@functools.cache
def _page() -> Template:
    """Return the page's template, compiled once: every page is rendered twice."""
    environment = Environment(
        loader=FileSystemLoader(_ASSETS), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    # Trusted: the script, the style, and JSON in which every sign of a tag is escaped.
    environment.filters |= {"base64": _base64, "sha256": _sha256, "trusted": Markup, "to_right": _to_right}
    environment.tests["long"] = _is_long
    return environment.get_template("page.html.jinja")


def _render(document: Document, packed: Packed) -> str:
    parts = [
        {
            "title": part.title,
            "kind": part.kind,
            "subtitle": part.subtitle,
            "missing": part.missing,
            "sections": [{"title": section.title, "groups": _groups(section.blocks)} for section in part.sections],
        }
        for part in document.parts
    ]
    return _page().render(
        title=document.title,
        style=STYLE,
        script=SCRIPT,
        contents=_contents(document, packed),
        parts=parts,
        packed=packed,
        packed_sources=[log.source for part in document.parts for log in part.logs],
    )


def _groups(blocks: Sequence[Block]) -> list[tuple[str, list[Block]]]:
    """Put blocks of one kind that follow each other together: pictures stand side by side."""
    return [(kind, list(group)) for kind, group in groupby(blocks, key=lambda block: type(block).__name__)]


def _contents(document: Document, packed: Packed) -> list[tuple[str, str]]:
    if len(document.parts) > 1:
        contents = [(f"part-{n}", part.title) for n, part in enumerate(document.parts, start=1)]
    else:
        sections = [section for part in document.parts for section in part.sections]
        contents = [(f"part-1-{n}", section.title) for n, section in enumerate(sections, start=1)]
    return [*contents, ("rollouts", "Browse the rollouts")] if packed.num_recorded else contents


def _to_right(table: TextTable) -> list[bool]:
    """Tell which columns hold short figures only."""
    numeric = table.numeric
    return [flag and not any(_is_long(row[place]) for row in table.rows) for place, flag in enumerate(numeric)]


def _is_long(cell: str) -> bool:
    """Whether a cell is to be broken into lines."""
    return max(map(len, cell.split("\n"))) > _LONG_CELL


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _sha256(text: str) -> str:
    return _base64(hashlib.sha256(text.encode()).digest())
