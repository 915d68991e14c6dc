"""``sdft distill``."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy_sdft.config.load import make_parser, parse


def run(arguments: Sequence[str]) -> int:
    """Rewrite the data set, print what became of it, draw it."""
    parser = make_parser(
        "sdft distill", "Rewrite a data set once with the base model, for --train.targets distilled (offline SDFT)."
    )
    config, _ = parse(parser, arguments)
    from onpolicy_sdft.offline.distill import run_distill
    from onpolicy_sdft.runs.progress import print_table

    outcome = run_distill(config, ["sdft", "distill", *arguments])
    total, verdicts, reasons = outcome.summary["num_rows"], outcome.summary["verdicts"], outcome.summary["reasons"]
    rows = [(f"verdict: {name}", str(count), f"{count / total:.1%}") for name, count in sorted(verdicts.items())]
    rows += [(f"refused: {name}", str(count), f"{count / total:.1%}") for name, count in sorted(reasons.items())]
    print_table(f"{total} rows ({config.distill.rules} rules)", ["what became of them", "rows", "share"], rows)
    print(outcome.path)
    from onpolicy_sdft.report.distilled import draw_distilled  # matplotlib: once there is something to draw

    print(draw_distilled(outcome.path.parent))
    print(f"train on it: sdft train ... --train.targets distilled --train.distilled {outcome.path.parent}")
    return 0
