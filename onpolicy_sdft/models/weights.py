"""The policy's weights, and those it had: the live ones, their average, or what they were at an earlier moment.

Whoever reads (rollouts, the teacher, the anchor, evaluation, export) asks for a kind of them. Only trainable parameters
are ever copied: of a LoRA run that is the adapter, and its ``base`` is the adapter switched off. There is one network:
while another kind is shown, the policy's parameters read from the copies. Copies are taken from memory, never from a
hub id, so a second task's ``stage`` is what the first left.

Shape letters: N loss tokens, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import PeftModel

from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.policy import Head, head_of, hidden_at_loss_tokens
from onpolicy_sdft.models.reading import LiveWeights, WeightProvider
from onpolicy_sdft.models.shards import WHOLE, Shards
from onpolicy_sdft.models.trace import no_trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onpolicy_sdft.types import MicroBatch

Kind = Literal["live", "ema", "stage", "base"]
_Copy = dict[str, torch.Tensor]  # this rank's part of each trainable parameter


class PolicyWeights:
    """Keeps what the kinds of weights that are needed take, and shows them to whoever reads.

    Args:
        model: The policy, as it starts: its trainable parameters now are ``base``, and the first ``stage``.
        kinds: Which of them will be read, besides the live ones.
        half_life: Optimizer steps after which half of what the average holds is newer; 0: the live weights, ``inf``:
            those of the start.
        device: Where copies are kept; None: beside the parameters.
        autocast: Gives the context that scoring computes in.
        shards: How parameters, and with them the copies, are divided among ranks.
        reader: What is read while weights are shown; None: the model itself.
        refresh_steps: Take ``stage`` anew every so many optimizer steps; None: only at the start of a task.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        kinds: Collection[Kind] = (),
        half_life: float = 50.0,
        device: torch.device | str | None = None,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        shards: Shards = WHOLE,
        reader: WeightProvider | None = None,
        refresh_steps: int | None = None,
    ) -> None:
        self.live = model
        self.reader = LiveWeights(model, shards) if reader is None else reader
        self.shards = shards
        self.rate = 1.0 - 0.5 ** (1.0 / half_life) if half_life > 0 else 1.0
        self.device = device
        self.autocast = autocast
        self.refresh_steps = refresh_steps
        self.copies: dict[str, _Copy] = {}
        # Kinds that are still what this run started from: no checkpoint needs them, unless one may be gone back to.
        self._given = {"stage", "base"} if refresh_steps is None else {"base"}
        for kind in kinds:
            if kind in ("ema", "stage") or (kind == "base" and not isinstance(model, PeftModel)):
                self.copies[kind] = self._copy()

    @property
    def model(self) -> PreTrainedModel | PeftModel:
        """What is read while weights are shown."""
        return self.reader.model

    @property
    def num_bytes(self) -> int:
        """Memory of this rank's copies."""
        return sum(tensor.nbytes for copy in self.copies.values() for tensor in copy.values())

    @torch.no_grad()
    def follow(self, num_steps: int) -> None:
        """Move the average towards the live weights; call once per optimizer step.

        Args:
            num_steps: Optimizer steps taken so far in this run.
        """
        self.reader.forget()
        if "ema" in self.copies:
            live = self._trainable()
            for name, kept in self.copies["ema"].items():
                kept.lerp_(self.shards.local(live[name]).to(kept), self.rate)
        if self.refresh_steps is not None and num_steps % self.refresh_steps == 0:
            self._retake("stage")

    def start_stage(self) -> None:
        """Take the weights of this moment for those at the start of a task; the average starts from them too."""
        self.reader.forget()
        for kind in ("stage", "ema"):
            self._retake(kind)

    @contextlib.contextmanager
    def showing(self, kind: Kind = "live") -> Iterator[None]:
        """Let :attr:`model` read from a kind of weights; then put its own back.

        Every rank must enter and leave together.

        Raises:
            KeyError: If no copy of that kind is kept.
        """
        with contextlib.ExitStack() as stack:
            if kind == "live" or (kind == "base" and isinstance(self.live, PeftModel)):
                stack.enter_context(self.reader.showing("live", None))
            else:
                stack.enter_context(self.reader.showing(kind, self.copies[kind]))
            if kind == "base" and isinstance(self.model, PeftModel):
                stack.enter_context(self.model.disable_adapter())
            yield

    def release(self) -> None:
        """Give memory back that only reading needs, until weights are shown again."""
        self.reader.release()

    def score(self, batch: MicroBatch) -> torch.Tensor:
        """Return the final hidden states [N, D] at a micro-batch's loss tokens under the weights that are shown."""
        with no_trace(self.model), self.autocast():
            return hidden_at_loss_tokens(inner_model(self.model), batch)

    def head(self) -> Head:
        """Return the output layer under the weights that are shown; it stays readable afterwards."""
        head = head_of(inner_model(self.model))
        weight, bias = (self._lasting(tensor) for tensor in (head.weight_VD, head.bias_V))
        assert weight is not None
        return Head(weight, bias, head.scale, head.softcap)

    def state(self, *, keeps: bool = True) -> dict[str, Any]:
        """Return, whole, the copies that a new start would not make by itself; every rank must call it.

        Args:
            keeps: Whether this rank wants them: gathering takes all ranks, holding the whole only one.
        """
        live, found = self._trainable(), dict[str, _Copy]()
        for kind in sorted(self.copies.keys() - self._given):
            found[kind] = {}
            for name, part in self.copies[kind].items():
                whole = self.shards.gather(live[name], part)
                if keeps:
                    found[kind][name] = whole.cpu()
        return found

    def restore(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`; call it also where only the live weights have changed."""
        self.reader.forget()
        self._given -= set(state)
        live = self._trainable()
        for kind, copy in state.items():
            for name, kept in self.copies[kind].items():
                kept.copy_(self.shards.part_of(live[name], copy[name]))

    def _retake(self, kind: str) -> None:
        if kind in self.copies:
            self.copies[kind] = self._copy()
            self._given.discard(kind)

    def _lasting(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """Return what a tensor holds now: a parameter in place is only pointed elsewhere, an arena is written over."""
        if tensor is None or isinstance(self.reader, LiveWeights):
            return None if tensor is None else tensor.data
        return tensor.data.clone()

    def _trainable(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.live.named_parameters() if p.requires_grad}

    def _copy(self) -> _Copy:
        # A copy, also where dtype and device stay: in float32, since an average of smaller steps than bfloat16 can
        # hold stands still. Adapters start from the policy's own: from zeros in A and B their product would lag.
        copy = {}
        for name, parameter in self._trainable().items():
            wide = torch.promote_types(parameter.dtype, torch.float32)
            copy[name] = self.shards.local(parameter).detach().to(device=self.device, dtype=wide, copy=True)
        return copy
