"""``sdft report``."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from onpolicy_sdft.cli.target import split_target
from onpolicy_sdft.report.html import build_report


def run(arguments: Sequence[str]) -> int:
    """Write the curves and the page of a run directory."""
    parser = ArgumentParser(prog="sdft report RUN", description="Write a run's curves and report.html again.")
    target, rest = split_target(parser, arguments)
    parser.parse_args(rest)
    for path in build_report(target):
        print(path)
    return 0
