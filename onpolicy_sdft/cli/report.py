"""``sdft report``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Literal

from onpolicy_sdft.cli.target import option_parser, parse_options, split_target


def run(arguments: Sequence[str]) -> int:
    """Write the report of runs, sequences, comparisons, sweeps and shifts."""
    parser = option_parser(
        "sdft report PATH...",
        "Report runs, sequences, comparisons, sweeps and shifts (their directories): tables with intervals, plots, and "
        "a browser of rollouts. Several runs stand side by side.",
    )
    parser.add_argument(
        "--output", type=str, help="File to write (default: report.html, or .md or .json, in the first directory)."
    )
    parser.add_argument(
        "--format",
        type=Literal["html", "md", "json"] | None,
        help="A page, Markdown with plots/ beside it, or what tables show (default: as --output ends, else html).",
    )
    first, rest = split_target(parser, arguments)
    more = list(takewhile(lambda argument: not argument.startswith("-"), rest))
    options = parse_options(parser, rest[len(more) :])
    from onpolicy_sdft.report.write import write_report

    for path in write_report([first, *more], options.output, options.format):
        print(path)
    return 0
