"""Leave the trained weights as transformers and peft expect them, with a card that says how they were made."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import HfApi
from peft import PeftModel
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from onpolicy_sdft.errors import ConfigError, ModelError
from onpolicy_sdft.models.card import CARD_MARK, model_card, where_base_is
from onpolicy_sdft.models.language import other_parts
from onpolicy_sdft.models.load import file_beside
from onpolicy_sdft.models.randomness import own_dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    base_name: str,
    facts: Mapping[str, str],
    summary: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write the adapter or the full model, tokenizer, generation config and model card; whole or not at all.

    A directory that is there already is replaced only if it is empty or holds an earlier export.

    Args:
        model: The trained model; with adapters, only these are written.
        tokenizer: Saved beside it.
        directory: Where to.
        base_name: ``model.name`` of the run; an adapter names it as its base.
        facts: Lines of the card: method, data, and so on.
        summary: Scores by stage, as in ``eval/summary.json``.
        weights: The trained weights by name, where the model's own are divided among ranks.

    Raises:
        ConfigError: If the directory holds anything else; nothing is touched then.
    """
    directory = directory.resolve()
    refuse_foreign(directory)
    scratch = directory.with_name(f".tmp-{directory.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    _write(model, tokenizer, scratch, base_name, weights)
    card = model_card(model, base_name, facts, summary)
    (scratch / "README.md").write_text(card, encoding="utf-8")
    old = directory.with_name(f".old-{directory.name}")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    scratch.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _write(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    base_name: str,
    weights: Mapping[str, torch.Tensor] | None,
) -> None:
    if isinstance(model, PeftModel):
        for adapter in model.peft_config.values():
            adapter.base_model_name_or_path = where_base_is(model, base_name)
        # An embedding that is trained is saved as a module of its own; "auto" would look for the base on the hub.
        kept = None if weights is None else dict(weights)
        model.save_pretrained(str(directory), save_embedding_layers=False, state_dict=kept)
    else:
        # Tensors of their own: parameters that are views of one buffer would be taken for tied ones, and copied there.
        own = model.state_dict() if weights is None else weights
        with own_dropout(model):
            model.save_pretrained(str(directory), state_dict={name: t.cpu() for name, t in own.items()})
    tokenizer.save_pretrained(directory)
    _copy_processors(model, directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)


def _copy_processors(model: PreTrainedModel | PeftModel, directory: Path) -> None:
    """Copy what prepares pictures, sounds and films for a model that takes more than text, from where it was loaded."""
    plain = cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)
    if not other_parts(plain):
        return
    source, revision = str(plain.config._name_or_path), getattr(plain.config, "_commit_hash", None)
    for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME):
        if found := file_beside(source, name, revision):
            shutil.copyfile(found, directory / name)


def try_saving(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, base_name: str) -> None:
    """Write all of an export but the weights, and throw it away: what cannot be saved is found out before training.

    Raises:
        ModelError: With what could not be saved.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            empty = {name: tensor.new_empty(0) for name, tensor in model.state_dict().items()}
            _write(model, tokenizer, Path(scratch) / "model", base_name, empty if isinstance(model, PeftModel) else {})
        except Exception as error:  # whatever the libraries raise: after training it would cost the model
            raise ModelError(
                f"The model could not be saved after training ({type(error).__name__}: {error}). Fix: load it with "
                "transformers, mend its config.json, generation_config.json or tokenizer files, and save it again."
            ) from error


def push_folder(directory: Path, name: str, *, private: bool = False, revision: str | None = None) -> None:
    """Upload an export to the hub, in a repository and a branch that are made if need be.

    Args:
        directory: The export.
        name: USER/NAME.
        private: Of a repository that is made; one that is there stays as it is.
        revision: Branch; None: the main one.
    """
    hub = HfApi()
    repository = hub.create_repo(name, exist_ok=True, private=private or None).repo_id
    if revision is not None:
        hub.create_branch(repository, branch=revision, exist_ok=True)
    hub.upload_folder(repo_id=repository, folder_path=str(directory), revision=revision)


def refuse_foreign(directory: Path) -> None:
    """Refuse to replace a directory that is neither empty nor an earlier export.

    Raises:
        ConfigError: If it is something else.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    card = directory / "README.md"
    if not card.is_file() or CARD_MARK not in card.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"{directory} holds other files and is not overwritten. Fix: name a new directory.")


def merge_adapter(model: PeftModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return a plain model with the adapter folded in, computed in float32.

    Args:
        model: With its adapter.
        dtype: Of the result; None: as the base is held.
    """
    dtype = dtype or cast("torch.dtype", model.get_base_model().dtype)
    merged = cast("PreTrainedModel", model.to(torch.float32).merge_and_unload())
    hold_in(merged, dtype)
    return merged


def hold_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Hold weights in a dtype; buffers stay: rotary frequencies are float32 whatever the weights are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
