"""``sdft continual``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from onpolicy_sdft.cli.tables import sequence_tables
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
    from onpolicy_sdft.continual.sequence import Interrupted, run_sequence
    from onpolicy_sdft.report.write import write_report
    from onpolicy_sdft.runs.files import read_json
    from onpolicy_sdft.runs.progress import say_to_stderr

    try:
        summary = run_sequence(config, ["sdft", "continual", *arguments], say_to_stderr)
    except Interrupted as stop:
        print(f"{stop}; the state is saved. Go on with the same command.", file=sys.stderr)
        return stop.exit_code
    print(sequence_tables(read_json(summary)))
    for path in (*write_report([summary.parent]), summary):
        print(path)
    return 0
