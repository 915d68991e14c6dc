"""What a base model is, by what was read of it: weights, config and stop tokens, not its name alone."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from onpolicy_sdft.build.bundle import ModelBundle

_DIGEST_PART = 1 << 20  # numbers
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers of as many bytes
#: Of a model's config: how it is held, or who wrote the file, not what it computes.
_NOT_THE_MODEL = ("transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")


def base_identity(bundle: ModelBundle) -> dict[str, Any]:
    """Return what must be the same wherever a run's adapter or checkpoint is put on the base model again.

    Args:
        bundle: As it was loaded, before adapters and training.
    """
    config = json.loads(json.dumps(bundle.loaded.model.config.to_diff_dict(), default=str))
    facts = {f"base config {name}": config[name] for name in sorted(config) if _is_of_the_model(name)}
    return {
        "base weights": weights_digest(bundle.loaded.model),
        "base stop tokens": list(bundle.stop_token_ids),
        **facts,
    }


def _is_of_the_model(name: str) -> bool:
    return name not in _NOT_THE_MODEL and not name.startswith("_")


@torch.no_grad()
def weights_digest(model: torch.nn.Module) -> str:
    """Digest a model's weights as they were loaded, by a sum of each one's bits weighed by their places.

    Weights that are divided among ranks while they are loaded have no digest; they are empty here.
    """
    digest, places = hashlib.sha256(), dict[torch.device, torch.Tensor]()
    for name, parameter in model.named_parameters():
        bits = parameter.detach().contiguous().view(_BITS[parameter.element_size()]).flatten()
        if bits.device not in places:
            places[bits.device] = _weights_of_places(bits.device)
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        for part in bits.split(_DIGEST_PART):  # a product in int64 makes a copy of its numbers in int64 first
            digest.update(f" {int((part.long() * places[bits.device][: len(part)]).sum())}".encode())
    return digest.hexdigest()


def _weights_of_places(device: torch.device) -> torch.Tensor:
    """Return an odd number for each place, spread over 64 bits, so that numbers that changed places are noticed."""
    spread = torch.arange(1, _DIGEST_PART + 1, device=device) * 0x1E3779B97F4A7C15
    return (spread ^ (spread >> 29)) | 1
