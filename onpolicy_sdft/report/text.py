"""What a report sums up, on a terminal: the tables and sentences of its summary sections."""

from __future__ import annotations

from onpolicy_sdft.report.document import Block, Document, Sentence, Table
from onpolicy_sdft.runs.progress import print_table


def print_text(document: Document) -> None:
    """Print the summary sections of a report to standard output; pictures and listings are left out.

    Args:
        document: The report.
    """
    for part in document.parts:
        for section in part.sections:
            for block in section.blocks if section.is_summary else ():
                _print(block)
        for line in part.missing:
            print(f"not here: {line}")


def _print(block: Block) -> None:
    if isinstance(block, Sentence):
        print(block.text)
    if isinstance(block, Table):
        columns, *rows = ([" ".join(cell.split()) for cell in row] for row in (block.text.columns, *block.text.rows))
        print_table(block.title, columns, rows)
        for line in filter(None, (block.caption, *block.notes)):
            print(line)
        print()
