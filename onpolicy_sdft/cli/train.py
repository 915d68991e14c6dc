"""``sdft train``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from onpolicy_sdft.build.cuda import make_repeatable
from onpolicy_sdft.config.load import make_parser, parse
from onpolicy_sdft.runs.commands import REFUSED_CODE


def run(arguments: Sequence[str]) -> int:
    """Train as the options say, then write the report.

    The code is that of a signal that ended it, or ``REFUSED_CODE`` where the gate found nothing better than the start.
    """
    parser = make_parser("sdft train", "Train a chat model on demonstrations; every option is a field of the config.")
    config, _ = parse(parser, arguments)
    if config.train.deterministic:
        make_repeatable("train.deterministic")
    from onpolicy_sdft.fitting.fit import fit

    outcome = fit(config, command=["sdft", "train", *arguments])
    if outcome.is_first:
        from onpolicy_sdft.cli.summary import print_summary
        from onpolicy_sdft.report.html import build_report  # matplotlib: after the last step, not before the first

        build_report(outcome.run)
        print_summary(outcome.run, outcome.result)
    if outcome.result.exit_code and outcome.is_first:
        print(
            f"stopped by {outcome.result.reason} after a whole step; the state is saved. "
            "Go on with the same command and --train.resume auto.",
            file=sys.stderr,
        )
    refused = outcome.verdict is not None and outcome.verdict.is_start
    return outcome.result.exit_code or (REFUSED_CODE if refused else 0)
