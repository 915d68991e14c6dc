"""What was read, by content: the one definition of "the same" for whoever takes results of another moment for its own.

It holds digests of a base model (weights, config, stop tokens), of a tokenizer, of what answers (a base model with its
adapter) and of what is asked (rows, rendered prompts, checks with their files). They are made of what was loaded, not
of names, sizes or times; weights are digested in memory, so that no file is read for them.

* Resume and ranks compare ``fitting/identity.py:identity_of``, which is made of these; the manifest records the base.
* Evaluation: partial answers, scores ``before``, completions of the base model, lm-eval and shift.
* Whoever puts an adapter on its base again, or measures a distance from it (``build/base.py``); ``sdft distill``.
* Sweeps, sequences and comparisons count finished runs, which are not loaded: they compare the digests of files that
  ``data/inputs.py`` makes and the manifest records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from onpolicy_sdft.data.tokenising import tokenizer_digest
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.runs.files import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from onpolicy_sdft.build.bundle import ModelBundle
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.data.eval_sets import EvalSet
    from onpolicy_sdft.types import Turn

#: Name of a base model's stop tokens among what tells it from others.
STOP_TOKENS = "base stop tokens"

_DIGEST_PART = 1 << 20  # numbers
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers of as many bytes
#: Of a model's config: how it is held, or who wrote the file, not what it computes.
_NOT_THE_MODEL = ("transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")
#: Of an adapter's config: where it stands and who wrote it.
_NOT_THE_ADAPTER = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")


def base_identity(bundle: ModelBundle) -> dict[str, Any]:
    """Return what must be the same wherever a run's adapter or checkpoint is put on the base model again.

    Args:
        bundle: As it was loaded, before adapters and training.
    """
    return {**model_identity(bundle.loaded.model), STOP_TOKENS: list(bundle.stop_token_ids)}


def model_identity(model: PreTrainedModel) -> dict[str, Any]:
    """Return the weights, as a digest, and the config of a base model that was loaded."""
    return {"base weights": weights_digest(model), **_config_of(model)}


def _config_of(model: PreTrainedModel) -> dict[str, Any]:
    config = json.loads(json.dumps(model.config.to_diff_dict(), default=str))
    return {
        f"base config {name}": config[name]
        for name in sorted(config)
        if name not in _NOT_THE_MODEL and not name.startswith("_")
    }


def recorded_date(manifest: Path) -> str | None:
    """Return the date that the chat template of a run or a distillation saw; None where there is none to go on with."""
    return (read_json(manifest).get("date") or None) if manifest.is_file() else None


def with_recorded_date(config: RunConfig, manifest: Path) -> RunConfig:
    """Return options with the date that was seen before, where they name none."""
    date = config.context.date or recorded_date(manifest)
    return dataclasses.replace(config, context=dataclasses.replace(config.context, date=date))


def answering_identity(bundle: ModelBundle, model: PreTrainedModel | PeftModel) -> str:
    """Return what tells a model that answers from others: its weights with those of adapters, and what it writes with.

    Args:
        bundle: Its tokenizer and stop tokens.
        model: As it answers.
    """
    adapters: list[Any] = []
    if isinstance(model, PeftModel):
        found = (adapter.to_dict() for adapter in model.peft_config.values())
        adapters = [{name: each[name] for name in each if name not in _NOT_THE_ADAPTER} for each in found]
    tokenizer = bundle.loaded.tokenizer
    written_with = bundle.stop_token_ids, tokenizer_digest(tokenizer), tokenizer.chat_template
    return digest_of(weights_digest(model), _config_of(inner_model(model)), adapters, written_with)


def start_identity(bundle: ModelBundle, base: Mapping[str, Any]) -> str:
    """Return what tells the base model of a run that trains from others, for marks of scores.

    Args:
        bundle: Its tokenizer.
        base: :func:`base_identity` of it.
    """
    return digest_of(base, tokenizer_digest(bundle.loaded.tokenizer))


def asked_identity(bundle: ModelBundle, questions: EvalSet) -> str:
    """Return what tells a set of questions from others: prompts as the model sees them, rows, and the check."""
    return digest_of(questions.identity, prompts_digest(bundle, [each.turns for each in questions.demonstrations]))


def prompts_digest(bundle: ModelBundle, prompts: Iterable[Sequence[Turn]]) -> str:
    """Digest the token ids of bare prompts: chat template, its arguments and its date, tokenizer."""
    return digest_of([bundle.renderer.student_ids(turns) for turns in prompts])


def digest_of(*facts: Any) -> str:
    """Digest facts that JSON can hold, the same before and after they stood in a file; sets are sorted."""
    text = json.dumps(facts, sort_keys=True, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


@torch.no_grad()
def weights_digest(model: torch.nn.Module) -> str:
    """Digest a model's weights as they were loaded, by a sum of each one's bits weighed by their places.

    Weights that are divided among ranks while they are loaded have no digest; they are empty here.
    """
    digest, places = hashlib.sha256(), dict[torch.device, torch.Tensor]()
    for name, weight in _weights_of(model):
        bits = weight.detach().contiguous().view(_BITS[weight.element_size()]).flatten()
        if bits.device not in places:
            places[bits.device] = _weights_of_places(bits.device)
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        for part in bits.split(_DIGEST_PART):  # a product in int64 makes a copy of its numbers in int64 first
            digest.update(f" {int((part.long() * places[bits.device][: len(part)]).sum())}".encode())
    return digest.hexdigest()


def _weights_of(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters, and the buffers that files of a model hold, such as what corrects the choice of experts."""
    yield from model.named_parameters()
    held = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in held)


def _weights_of_places(device: torch.device) -> torch.Tensor:
    """Return an odd number for each place, spread over 64 bits, so that numbers that changed places are noticed."""
    spread = torch.arange(1, _DIGEST_PART + 1, device=device) * 0x1E3779B97F4A7C15
    return (spread ^ (spread >> 29)) | 1
