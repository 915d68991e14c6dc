"""``sdft report``."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy_sdft.cli.target import option_parser, parse_options, split_target


def run(arguments: Sequence[str]) -> int:
    """Write the curves and the page of a run directory."""
    parser = option_parser("sdft report RUN", "Write a run's curves and report.html again.")
    target, rest = split_target(parser, arguments)
    parse_options(parser, rest)
    from onpolicy_sdft.report.html import build_report

    for path in build_report(target):
        print(path)
    return 0
