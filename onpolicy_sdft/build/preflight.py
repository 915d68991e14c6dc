"""What is said of the data of a run before its first step."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from onpolicy_sdft.build.method import make_screen
from onpolicy_sdft.data.preflight import describe_lengths
from onpolicy_sdft.runs.progress import print_table
from onpolicy_sdft.screening.demonstrations import refused_demonstrations

if TYPE_CHECKING:
    from onpolicy_sdft.build.bundle import ModelBundle
    from onpolicy_sdft.build.data import Data
    from onpolicy_sdft.config.schema import RunConfig

logger = logging.getLogger(__name__)


def print_preflight(data: Data, config: RunConfig, bundle: ModelBundle, *, screens: bool) -> None:
    """Show where the data came from, how long both prompts are, what was cut or left out, and what screening says.

    Args:
        data: The demonstrations.
        config: Of the run.
        bundle: Decodes rollouts.
        screens: Whether the rules of ``screening`` will judge rollouts.
    """
    loaded, prepared = data.loaded, data.prepared
    logger.info(f"{len(prepared.pairs)} demonstrations from {loaded.where}")
    for message in loaded.skipped[:5]:
        logger.warning(f"skipped {message}")
    if loaded.skipped:
        logger.warning(f"{len(loaded.skipped)} bad rows were skipped (data.on_bad_row=skip)")
    for what, number in loaded.unread.items():
        logger.warning(f"not read in {number} of the rows: {what}")
    rows, warnings = describe_lengths(prepared, config.rollout.max_new_tokens)
    print_table(
        "lengths in tokens",
        ["tokens of", "min", "median", "p95", "max", "histogram"],
        [(r.name, str(r.smallest), str(r.median), str(r.p95), str(r.largest), r.histogram) for r in rows],
    )
    for warning in warnings:
        logger.warning(warning)
    if screens:
        # On rank 0 alone: an error of a check is counted with the others, it does not end the run here.
        counting = replace(config, screening=replace(config.screening, max_check_errors=1.0))
        screen = make_screen(counting, bundle, data)
        refused = refused_demonstrations(screen, prepared.pairs, config.rollout.max_new_tokens)
        logger.log(logging.WARNING if refused.by_rule else logging.INFO, refused.line())
