"""Whether every weight of a model came from its files, and is a number: what is made up would be trained unseen."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open

from onpolicy_sdft.errors import ModelError, SdftError
from onpolicy_sdft.system_errors import way_on

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_MISSING_IN_ADAPTER = "Found missing adapter keys while loading the checkpoint: "  # PEFT's words
_AGAIN = "copy or download its files again"


def some(names: Collection[str]) -> str:
    """Return the first few names, and how many there are in all if there are more."""
    first = sorted(names)[:3]
    return ", ".join(first) + (f", ... ({len(names)} in all)" if len(names) > len(first) else "")


def refuse_incomplete(info: Mapping[str, Any], name: str) -> None:
    """Refuse a model with weights that its files do not hold as its config has them; name weights that are surplus.

    Args:
        info: What ``from_pretrained`` says with ``output_loading_info``: tied weights count as held.
        name: Of the model.

    Raises:
        ModelError: Naming the weights.
    """
    if missing := info["missing_keys"]:
        raise ModelError(
            f"The files of {name!r} lack {len(missing)} weights that its config.json asks for, which would be made up "
            f"at random: {some(missing)}. Fix: {_AGAIN}, or correct its config.json (number of layers, "
            "tie_word_embeddings)."
        )
    if mismatched := info["mismatched_keys"]:
        shapes = [f"{key} {tuple(stored)} for {tuple(wanted)}" for key, stored, wanted in mismatched]
        raise ModelError(
            f"The files of {name!r} hold {len(shapes)} weights of another shape than its config.json asks for: "
            f"{some(shapes)}. Fix: correct its config.json, or {_AGAIN}."
        )
    if surplus := info["unexpected_keys"]:
        logger.warning(
            f"the files of {name} hold {len(surplus)} weights that its config.json has no place for, and they are not "
            f"loaded: {some(surplus)}. Fix: correct its config.json, if they belong to the model"
        )


def refuse_no_numbers(weights: Iterable[tuple[str, torch.Tensor]], name: str) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        weights: By name.
        name: Of what holds them.

    Raises:
        ModelError: Naming them.
    """
    broken = [each for each, weight in weights if not _are_numbers(weight.detach())]
    if broken:
        raise ModelError(
            f"{len(broken)} weights of {name!r} hold NaN or infinite numbers, so every answer would be noise: "
            f"{some(broken)}. Fix: {_AGAIN}, or take the model before it was damaged."
        )


def _are_numbers(weight: torch.Tensor) -> bool:
    """Whether all are finite; nothing is held beside the weight. Those of 8 bits and fewer are taken as they are."""
    if weight.is_meta or not weight.numel() or not weight.is_floating_point() or weight.element_size() == 1:
        return True
    return all(bool(end.isfinite()) for end in torch.aminmax(weight))


def load_adapter(model: PreTrainedModel, folder: str | Path, **options: Any) -> PeftModel:
    """Put a saved adapter on its base.

    Args:
        model: The base.
        folder: Of the adapter, or its hub id.
        **options: Of ``PeftModel.from_pretrained``.

    Raises:
        ModelError: If it cannot be loaded, its files lack weights, or they hold no numbers.
    """
    of_the_base = set(map(id, model.parameters()))  # looked at when that was loaded
    with warnings.catch_warnings():
        warnings.filterwarnings("error", _MISSING_IN_ADAPTER)
        try:
            adapted: PeftModel = PeftModel.from_pretrained(model, str(folder), **options)
        except UserWarning as error:
            names = re.findall(r"'([^']+)'", str(error))
            raise ModelError(
                f"The files of the adapter {folder} lack {len(names)} weights that its adapter_config.json asks for, "
                f"which would be made up at random: {some(names)}. Fix: {_AGAIN}."
            ) from error
        except Exception as error:  # whatever the libraries raise
            refuse_unloadable(error, f"the adapter {folder}", [Path(folder) / "adapter_model.safetensors"])
    own = ((each, weight) for each, weight in adapted.named_parameters() if id(weight) not in of_the_base)
    refuse_no_numbers(own, str(folder))
    return adapted


def refuse_unloadable(error: Exception, what: str, files: Collection[Path], fix: str = "") -> NoReturn:
    """Raise what kept a model from being loaded in words that name it; errors of the machine go on as they are.

    Args:
        error: As a library raised it.
        what: Was being loaded.
        files: Of weights, which may be cut off.
        fix: The way out, where it is known.

    Raises:
        ModelError: With the cause and the way out.
    """
    if isinstance(error, SdftError) or way_on(error) is not None:
        raise error
    said = " ".join(str(error).split()).rstrip(".")
    for path in files:
        if path.is_file() and (damage := _damage(path)):
            raise ModelError(f"Cannot load {what}: {path} is damaged or cut off ({damage}). Fix: {_AGAIN}.") from error
    raise ModelError(
        f"Cannot load {what} ({type(error).__name__}: {said}). Fix: {fix or f'mend what it says, or {_AGAIN}'}."
    ) from error


def _damage(path: Path) -> str:
    try:
        with safe_open(path, framework="pt"):
            return ""
    except SafetensorError as error:
        return " ".join(str(error).split())
