"""A report as data: what its tables show, each with the files it comes from."""

from __future__ import annotations

from typing import Any

from onpolicy_sdft.report.document import Block, Document, Listing, Picture, Sentence, Table, Tiles


def document_data(document: Document) -> dict[str, Any]:
    """Return a report as mappings and lists.

    Args:
        document: The report.

    Returns:
        What strict JSON can hold: parts, their sections, and their blocks with ``sources``. Tables carry the figures
        behind their cells (``rows``) besides the text of these (``cells``).
    """
    return {
        "title": document.title,
        "parts": [
            {
                "title": part.title,
                "kind": part.kind,
                "subtitle": part.subtitle,
                "missing": part.missing,
                "sections": [
                    {"title": section.title, "blocks": [_block(block) for block in section.blocks]}
                    for section in part.sections
                ],
                "rollouts": [{"run": log.run, "n": len(log.records), "sources": [log.source]} for log in part.logs],
            }
            for part in document.parts
        ],
    }


def _block(block: Block) -> dict[str, Any]:
    common = {"kind": type(block).__name__.lower(), "name": block.name, "sources": list(block.sources)}
    if isinstance(block, Table):
        shown = {"title": block.title, "caption": block.caption, "notes": list(block.notes)}
        cells = [list(row) for row in block.text.rows]
        return {**common, **shown, "columns": list(block.text.columns), "cells": cells, "rows": list(block.data)}
    if isinstance(block, Picture):
        return {**common, "title": block.title, "caption": block.caption}
    if isinstance(block, Tiles):
        return {**common, "figures": {tile.title: tile.value for tile in block.tiles}}
    if isinstance(block, Sentence):
        return {**common, "text": block.text, "figures": block.data}
    return _listing(block, common)


def _listing(block: Listing, common: dict[str, Any]) -> dict[str, Any]:
    return {**common, "title": block.title, "text": block.text}
