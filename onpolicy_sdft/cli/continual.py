"""``sdft continual``."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy_sdft.config.load import load_plan
from onpolicy_sdft.config.sequence import SequenceConfig


def run(arguments: Sequence[str]) -> int:
    """Run a sequence of tasks, print its accuracy matrix and metrics, and leave a report."""
    config = load_plan(
        SequenceConfig,
        "sdft continual",
        "Train on tasks one after the other, scoring all of them each time.",
        arguments,
    )
    from onpolicy_sdft.cli.results import run_and_show
    from onpolicy_sdft.experiments.sequence import run_sequence

    return run_and_show(lambda: run_sequence(config, ["sdft", "continual", *arguments]))
