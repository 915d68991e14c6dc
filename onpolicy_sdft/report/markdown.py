"""A report as Markdown, with its pictures as files beside it."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from onpolicy_sdft.report.document import Block, Document, Listing, Picture, Sentence, Table, Tiles
from onpolicy_sdft.report.tables import markdown_text

#: The last line of every report: what an earlier one is told from other files by.
MARKDOWN_MARK = "<!-- a report of sdft -->"


def render_markdown(document: Document, file_of: Callable[[Picture], str]) -> str:
    """Write a report in GitHub's Markdown.

    Args:
        document: The report.
        file_of: Where each picture stands, from the Markdown file.

    Returns:
        The file's text; it ends in a newline.
    """
    lines = [f"# {markdown_text(document.title)}", ""]
    for part in document.parts:
        if len(document.parts) > 1:
            lines += [f"## {markdown_text(part.title)} ({part.kind})", ""]
        if part.subtitle:
            lines += [markdown_text(part.subtitle), ""]
        if part.missing:
            lines += ["What is not here:", "", *(f"* {markdown_text(line)}" for line in part.missing), ""]
        for section in part.sections:
            lines += [f"### {markdown_text(section.title)}", ""]
            for block in section.blocks:
                lines += [*_block(block, section.title, file_of), ""]
        if part.logs:
            files = ", ".join(log.source for log in part.logs)
            lines += [f"The rollouts themselves: {markdown_text(files)}; the HTML page shows them.", ""]
    return "\n".join([*lines, MARKDOWN_MARK, ""])


def _block(block: Block, title: str, file_of: Callable[[Picture], str]) -> list[str]:
    if isinstance(block, Table):
        head = [] if block.title == title else [f"#### {markdown_text(block.title)}", ""]
        caption = [markdown_text(block.caption), ""] if block.caption else []
        notes = [line for note in block.notes for line in ("", markdown_text(note))]
        return [*head, *caption, block.text.to_markdown(), *notes, *_sources(block.sources)]
    if isinstance(block, Picture):
        name = markdown_text(block.title).replace("[", "\\[").replace("]", "\\]")
        text = f"**{markdown_text(block.title)}.** {markdown_text(block.caption)}"
        return [f"![{name}]({quote(file_of(block))})", "", text.strip(), *_sources(block.sources)]
    if isinstance(block, Tiles):
        return [*(f"* {t.title}: {markdown_text(t.text)}" for t in block.tiles), *_sources(block.sources)]
    if isinstance(block, Sentence):
        return [markdown_text(block.text), *_sources(block.sources)]
    return _listing(block)


def _listing(block: Listing) -> list[str]:
    fence = "```"
    while fence in block.text:
        fence += "`"
    summary = f"<details><summary>{markdown_text(block.title)}</summary>"
    return [summary, "", fence, block.text.rstrip("\n"), fence, *_sources(block.sources), "", "</details>"]


def _sources(sources: tuple[str, ...]) -> list[str]:
    return ["", f"<sub>from {markdown_text(', '.join(sources))}</sub>"] if sources else []
