"""The policy: the trainable weights, with the head and the loss inside the wrapped forward.

Under ZeRO-3 and FSDP2 the head's weight exists only inside the wrapped module's forward, so the objective is
called there and nothing outside touches a parameter.

Shape letters: B sequences, T positions, N loss tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from onpolicy_sdft.errors import ModelError
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.modes import keeping_modes
from onpolicy_sdft.models.packed import Packing, attention_of
from onpolicy_sdft.shapes import pad_rows
from onpolicy_sdft.types import T

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from onpolicy_sdft.types import MicroBatch


class Summed(Protocol):
    """What an objective returns."""

    @property
    def loss_sum(self) -> torch.Tensor:
        """Loss summed over the N loss tokens, in nats: []."""
        ...

    @property
    def figures(self) -> torch.Tensor:
        """What else was summed over them."""
        ...


class Objective(Protocol):
    """A pure function of tensors; see ``objectives/``. ``signals`` says how each loss token is learned."""

    def __call__(self, hidden_ND: torch.Tensor, head: Head, labels_N: torch.Tensor, signals: Any) -> Summed:
        """Sum over the N loss tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer: ``logits = softcap(scale * (hidden @ weight.T + bias))``."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Compute logits, float32 or wider: [N, D] -> [N, V]."""
        raw = nn.functional.linear(pad_rows(hidden_ND), self.weight_VD, self.bias_V)
        return self.finish(raw[: len(hidden_ND)])

    def finish(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn what the output layer gives into logits, float32 or wider: [N, V] -> [N, V]."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits * self.scale if self.scale != 1.0 else logits
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def pull_back(self, logits: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Turn a gradient of the logits into one of what the output layer gave: [N, V] -> [N, V]."""
        if self.softcap is not None:
            gradient = gradient * (1 - (logits / self.softcap) ** 2)
        return gradient * self.scale if self.scale != 1.0 else gradient


class Policy(nn.Module):
    """A causal language model whose forward ends in an objective.

    Args:
        model: The model, with or without adapters.

    Raises:
        ModelError: If the model's head is of a kind that is not known here.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model
        # accelerate reads them: which modules FSDP divides, and sizes that DeepSpeed's buffers follow from.
        self._no_split_modules = getattr(inner_model(model), "_no_split_modules", None)
        self.config = inner_model(model).config
        check_head(inner_model(model))

    def run(self, function: Callable[[], T]) -> T:
        """Call a function that reads the model; FSDP puts its own parameters in place around it."""
        return function()

    def forward(self, batch: MicroBatch, objective: Objective, signals: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Score a micro-batch's loss tokens from its bare prompts.

        Hidden states of all positions go through the body; only those at loss tokens reach the head.

        Returns:
            The loss summed over loss tokens, [] in nats, with its gradient; and what else the objective summed over
            them. A plain tuple: DeepSpeed and FSDP look for tensors in nothing else.
        """
        inner = inner_model(self.model)
        summed = objective(hidden_at_loss_tokens(inner, batch), head_of(inner), batch.labels, signals)
        return summed.loss_sum, summed.figures


def hidden_at_loss_tokens(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """Run the layers over a micro-batch; return the final hidden states that predict its loss tokens: [N, D]."""
    asked: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if batch.packed_lengths:
        packing = Packing.of(batch.packed_lengths, batch.input_ids.device)
        asked |= {"position_ids": packing.positions, "packing": packing}
    elif window := getattr(model.config.get_text_config(), "max_position_embeddings", None):
        # Padding that makes shapes few must not ask for positions that the model does not have.
        length = max(window, *(row.length for row in batch.rows))
        asked |= {name: asked[name][:, :length] for name in ("input_ids", "attention_mask")}
    with attention_of(batch, model):
        hidden_BTD = body(model)(**asked).last_hidden_state
    hidden_ND: torch.Tensor = hidden_BTD[batch.loss_rows, batch.loss_positions]
    return hidden_ND


def body(model: PreTrainedModel) -> nn.Module:
    """Return the stack of layers below the head, final norm included."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else None
    if found is None or found is model:
        found = model.base_model
    if found is model:
        raise ModelError(
            f"{type(model).__name__} does not separate its layers from its head, so it cannot be trained here. "
            "Fix: another model."
        )
    return found


def head_of(model: PreTrainedModel) -> Head:
    """Return the head of a model, with the logit scale and soft cap its config names."""
    layer = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma
    return Head(layer.weight, getattr(layer, "bias", None), scale, float(softcap) if softcap else None)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Refuse a model whose own logits are not what :func:`head_of` computes.

    Raises:
        ModelError: If they differ, or if there is no output layer.
    """
    if model.get_output_embeddings() is None:
        raise ModelError(f"{type(model).__name__} has no output layer; a causal language model is needed.")
    weight = model.get_output_embeddings().weight
    if weight.numel() == 0 or weight.is_meta:  # sharded before it came here: nothing to compare with
        return
    with keeping_modes(model):
        model.eval()
        ids = torch.arange(1, 5, device=weight.device)[None]
        own = model(input_ids=ids, use_cache=False).logits.float()
        hidden = body(model)(input_ids=ids, use_cache=False).last_hidden_state
        ours = head_of(model).logits(hidden.to(weight.dtype)).float()
    tolerance = 1e-3 if weight.dtype == torch.float32 else 0.25
    if own.shape != ours.shape or not torch.allclose(own, ours, rtol=1e-2, atol=tolerance):
        raise ModelError(
            f"{type(model).__name__} computes its logits in a way that is not known here (largest difference "
            f"{(own - ours).abs().max().item():.3g} from hidden @ head). Training it would optimise other "
            "logits than it samples from. Use another model, or teach models/policy.py its head."
        )
