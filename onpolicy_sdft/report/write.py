"""Write a report of any directories, in any form."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.report.compose import compose, kinds_of
from onpolicy_sdft.report.data import document_data
from onpolicy_sdft.report.document import Document, Picture
from onpolicy_sdft.report.html import build_report, render_page
from onpolicy_sdft.report.markdown import MARKDOWN_MARK, render_markdown
from onpolicy_sdft.runs.files import write_bytes_atomic, write_json_atomic, write_text_atomic

Format = Literal["html", "md", "json"]
_OWN_NAME = "report"
#: In the head of every page.
_PAGE_MARK = "base-uri 'none'; form-action 'none'"


def write_report(
    paths: Sequence[Path | str], output: Path | str | None = None, form: Format | None = None
) -> list[Path]:
    """Report runs, sequences, comparisons, sweeps and shifts.

    Args:
        paths: Their directories, at least one.
        output: The file; None is ``report.html`` (or ``.md``, ``.json``) in the first directory.
        form: How it is written; None is what the ending of ``output`` says, else HTML.

    Returns:
        Paths written, the report first.

    Raises:
        ConfigError: The output is a directory, or a file that is no report.
        RunDirectoryError: A directory holds nothing that a report can be made of.
    """
    places = [Path(path) for path in paths]
    if output is not None and Path(output).is_dir():
        raise ConfigError(
            f"output={output} is a directory. Fix: name a file in it, e.g. {Path(output) / 'report.html'}."
        )
    if output is not None and Path(output).exists() and not _is_report(Path(output)):
        raise ConfigError(
            f"output={output} is there already, and it is no report of sdft. Fix: another file, or delete it."
        )
    form = form or _form_of(output)
    kinds = [kinds_of(place) for place in places]
    if output is None and form == "html" and kinds == [["run"]]:
        return build_report(places[0])
    target = places[0] / f"{_OWN_NAME}.{form}" if output is None else Path(output)
    document = compose(places, target.parent)
    if form == "json":
        write_json_atomic(target, document_data(document))
        return [target]
    if form == "html":
        return [write_page(document, target)]
    return _write_markdown(document, target)


def write_page(document: Document, target: Path) -> Path:
    """Write a report's page to a file, or as ``report.html`` to a directory; return its path."""
    page = target / f"{_OWN_NAME}.html" if target.is_dir() else target
    write_text_atomic(page, render_page(document))
    return page


def _is_report(path: Path) -> bool:
    """Whether a file is a report that was written here, in any form, and may be replaced by the next one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    if text.startswith("{"):
        try:
            return bool({"title", "parts"} <= json.loads(text).keys())
        except ValueError:
            return False
    return (text.startswith("<!DOCTYPE html>") and _PAGE_MARK in text) or text.rstrip().endswith(MARKDOWN_MARK)


def _form_of(output: Path | str | None) -> Format:
    ending = "" if output is None else Path(output).suffix.lstrip(".")
    return next((form for form in get_args(Format) if form == ending), "html")


def _write_markdown(document: Document, target: Path) -> list[Path]:
    """Write the Markdown file and its pictures; those of several reports in one directory keep apart."""
    prefix = "" if target.stem == _OWN_NAME else f"{target.stem}-"
    files: dict[int, str] = {}
    written = [target]
    for picture in document.pictures():
        name = f"{prefix}{_file_name(picture.name)}"
        number = 1
        while f"plots/{name}.png" in files.values():
            number += 1
            name = f"{prefix}{_file_name(picture.name)}-{number}"
        files[id(picture)] = f"plots/{name}.png"
        written.append(target.parent / files[id(picture)])
        write_bytes_atomic(written[-1], picture.png)

    def file_of(picture: Picture) -> str:
        return files[id(picture)]

    write_text_atomic(target, render_markdown(document, file_of))
    return written


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)
