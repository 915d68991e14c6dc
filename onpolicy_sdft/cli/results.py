"""Show the results of what is made of many runs: the report's summary on the terminal, the whole of it on a page."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from onpolicy_sdft.experiments.sequence import Interrupted


def run_and_show(work: Callable[[], Path]) -> int:
    """Run a sequence or a comparison, then show its results.

    Args:
        work: Runs what is left of it; returns its summary, in its directory.

    Returns:
        The exit code: that of the signal, if one ended it.
    """
    try:
        summary = work()
    except Interrupted as stop:
        print(f"{stop}; the state is saved. Go on with the same command.", file=sys.stderr)
        return stop.exit_code
    show_results(summary.parent)
    print(summary)
    return 0


def show_results(directory: Path) -> None:
    """Print the summary of a report, write its page and print where that is."""
    from onpolicy_sdft.report.compose import compose  # matplotlib: after the last run, not before the first
    from onpolicy_sdft.report.text import print_text
    from onpolicy_sdft.report.write import write_page

    document = compose([directory], directory)
    print_text(document)
    print(write_page(document, directory))
