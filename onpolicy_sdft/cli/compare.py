"""``sdft compare``."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy_sdft.config.load import load_plan
from onpolicy_sdft.config.sequence import CompareConfig, SequenceConfig


def run(arguments: Sequence[str]) -> int:
    """Run methods x seeds on one sequence, print one table with intervals, and leave a report."""
    config = load_plan(
        CompareConfig, "sdft compare", "Methods side by side on one sequence: what is learned, what is forgotten.",
        arguments,
    )  # fmt: skip
    files = [part for file in config.sequence for part in ("--config", file)]
    sequence = load_plan(SequenceConfig, "sdft compare (sequence)", "", files)
    from onpolicy_sdft.cli.results import run_and_show
    from onpolicy_sdft.experiments.compare import run_comparison

    return run_and_show(lambda: run_comparison(config, sequence, ["sdft", "compare", *arguments]))
