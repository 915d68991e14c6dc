"""Learning a distilled file: its answers in the place of the demonstrations'."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.build.bundle import context_window
from onpolicy_sdft.build.method import make_screen
from onpolicy_sdft.data.inputs import find_distilled
from onpolicy_sdft.data.preflight import refuse_beyond_window
from onpolicy_sdft.offline.file import apply_distilled, read_rows
from onpolicy_sdft.runs.files import file_digest, read_json

if TYPE_CHECKING:
    from onpolicy_sdft.build.bundle import ModelBundle
    from onpolicy_sdft.build.data import Data
    from onpolicy_sdft.config.schema import RunConfig

logger = logging.getLogger(__name__)


def use_distilled(config: RunConfig, bundle: ModelBundle, data: Data) -> Data:
    """Put the responses of a distilled file in the place of the demonstrations', where one is the target source."""
    if config.train.targets != "distilled" or config.train.distilled is None:
        return data
    path = find_distilled(config.train.distilled)
    screen = make_screen(config, bundle, data, num_workers=0)
    refuses = screen.verdicts["control"] != "keep"
    pairs, num_dropped = apply_distilled(
        data.prepared.pairs, read_rows(path), path, screen.decode, screen.controls_beyond if refuses else lambda *_: ()
    )
    logger.info(
        f"{len(pairs)} targets from {path}" + (f"; {num_dropped} rows were dropped there" if num_dropped else "")
    )
    prepared = dataclasses.replace(data.prepared, pairs=pairs)
    refuse_beyond_window(prepared, config.rollout.max_new_tokens, context_window(bundle))
    loaded = dataclasses.replace(data.loaded, fingerprint=f"{data.loaded.fingerprint}+{file_digest(path)}")
    return dataclasses.replace(data, loaded=loaded, prepared=prepared)


def warn_of_other_writer(config: RunConfig, base: Mapping[str, Any]) -> None:
    """Say where a distilled file was written by other weights: what it teaches is then no text of this model."""
    if config.train.distilled is None or config.train.adapter_handoff == "merge":
        return
    manifest = find_distilled(config.train.distilled).parent / "manifest.json"
    wrote = read_json(manifest).get("base", {}).get("base weights") if manifest.is_file() else None
    if wrote and base["base weights"] and wrote != base["base weights"]:
        logger.warning(
            f"train.distilled={config.train.distilled!r} was written by other weights than model.name="
            f"{config.model.name!r} has: its answers are another model's. Distil with the model that is trained."
        )
