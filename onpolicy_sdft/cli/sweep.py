"""``sdft sweep``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onpolicy_sdft.config.sweep import load_sweep, make_sweep_parser

if TYPE_CHECKING:
    from onpolicy_sdft.config.sweep import SweepConfig
    from onpolicy_sdft.experiments.sweep import SweepOutcome
    from onpolicy_sdft.experiments.sweep_plan import Plan


def run(arguments: Sequence[str]) -> int:
    """Run what is left of a sweep, print its table and leave a report; 1 if a run has failed."""
    parser = make_sweep_parser()
    parser.add_argument("--dry_run", action="store_true", help="List the runs, or refuse them, and start none.")
    config, options = load_sweep(arguments, parser)
    from onpolicy_sdft.experiments.sweep import make_start, run_sweep
    from onpolicy_sdft.experiments.sweep_plan import make_plan
    from onpolicy_sdft.runs.signals import caught_signals

    plan = make_plan(config)
    if options.dry_run:
        return _list_runs(config, plan)
    with caught_signals() as signals:
        start = make_start(config, signals, _threads(config))
        outcome = run_sweep(config, plan, start, signals)
    return _conclude(outcome)


def _list_runs(config: SweepConfig, plan: Plan) -> int:
    from onpolicy_sdft.experiments.sweep import check_startable, look_up
    from onpolicy_sdft.experiments.sweep_results import plain_text
    from onpolicy_sdft.runs.progress import print_table

    check_startable(config, plan)
    directory = Path(config.output_dir)
    states = {row.name: row.state for row in look_up(config, plan, directory)}
    rows = [
        [run.name, *(plain_text(value) for value in run.point.values.values()), str(run.seed), states[run.name]]
        for run in plan.runs
    ]
    title = f"{len(plan.runs)} runs, at most {config.max_parallel} at once, in {directory}"
    print_table(title, ["run", *config.axes, "seed", "state"], rows)
    for distilled in plan.distilled:
        print(f"written first by the base model: {directory / distilled.name}")
    for entry in plan.excluded:
        values = ", ".join(f"{axis} {plain_text(value)}" for axis, value in entry.values.items())
        print(f"left out: {values}" + (f" ({entry.why})" if entry.why else ""))
    return 0


def _conclude(outcome: SweepOutcome) -> int:
    from onpolicy_sdft.cli.results import show_results
    from onpolicy_sdft.experiments.sweep_results import SWEEP_FILE, TABLE_FILE

    show_results(outcome.directory)
    for name in (TABLE_FILE, SWEEP_FILE, "logs"):
        print(outcome.directory / name)
    num_done = sum(row.state == "done" for row in outcome.rows)
    if outcome.signal is not None:
        print(
            f"stopped by {signal.Signals(outcome.signal).name}: {num_done} of {len(outcome.rows)} runs are done, what "
            "was at work has saved its state. Go on with the same command.",
            file=sys.stderr,
        )
        return 128 + outcome.signal
    return 0 if num_done == len(outcome.rows) else 1


def _threads(config: SweepConfig) -> dict[str, str]:
    """Share the cores among runs that are at work at once: each would take all of them otherwise."""
    from onpolicy_sdft.runs.manifest import hardware

    if config.max_parallel == 1 or config.launch or config.launcher != "local":
        return {}
    share = str(max(1, (hardware()["num_usable_cores"] or 1) // config.max_parallel))
    return {name: share for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS") if name not in os.environ}
