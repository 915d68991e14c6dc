"""Decoding in steps of a fixed shape, for devices that the host must not keep waiting.

A step is :func:`~onpolicy_sdft.rollout.decode.grid_step` over a bucket of rows, run several times before the host looks
at what it did. On CUDA it is captured in a graph the first time and replayed from then on; elsewhere it runs as it is,
which is how it is tested. Rows without a slot, and those whose text has ended, work on the padding slot.

Shape letters: B rows of the bucket.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from onpolicy_sdft.rollout.call import Call
from onpolicy_sdft.rollout.decode import grid_step
from onpolicy_sdft.rollout.speculation import choose_width
from onpolicy_sdft.shapes import round_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

_AN_OCTAVE = 2  # row counts of steps: fewer than elsewhere, since each is a graph to capture


class GridCall(Call):
    """A call whose live slots advance several steps between two looks of the host."""

    def _decode(self) -> None:
        """Advance every live slot by some steps, and take out what has ended."""
        started = time.perf_counter()
        slots = self.scheduler.live
        max_drafts = self._max_drafts(len(slots))
        step = self.step(len(slots), max_drafts)
        left = max(self.requests[self._request_in(slot)].max_new_tokens - self.written[slot] for slot in slots)
        num_steps = min(self.engine.options.sync_steps, left)
        step.load(slots)
        for _ in range(num_steps):
            step.run()
        finished, written = step.read()
        num_tokens = sum(written) - sum(self.written[slot] for slot in slots)
        self.written.update(zip(slots, written, strict=True))
        num_drafted, num_seen, num_accepted, num_with_drafts = step.take_counts()
        if max_drafts:
            self.engine.acceptance.saw_rows(num_tokens - num_accepted, num_with_drafts, num_seen, num_accepted)
        self.stats.num_decode_forwards += num_steps
        self.stats.num_decode_rows += num_tokens - num_accepted
        self.stats.num_decode_slots += num_steps * self.pool.num_slots
        self.stats.num_drafted_tokens += num_drafted
        self.stats.num_accepted_tokens += num_accepted
        self._leave(finished, num_tokens)
        self.stats.decode_seconds += time.perf_counter() - started

    def step(self, num_rows: int, max_drafts: int) -> GridStep:
        """Return the step of the smallest bucket that holds so many rows."""
        size = min(round_rows(num_rows, _AN_OCTAVE), self.pool.num_slots)
        batch_params, texts = self.pool.batch_params, self.pool.texts
        recorded = tuple(0 if each is None else each.data_ptr() for each in (texts.hidden, texts.top_token_ids))
        blends = None if texts.pairs is None else texts.pairs.is_budgeted
        key = (
            size,
            max_drafts,
            batch_params.is_raw,
            batch_params.is_filtered,
            batch_params.is_penalised,
            recorded,
            blends,
        )
        return self.engine.steps.get(key, lambda: GridStep(self, size, max_drafts))

    def _max_drafts(self, num_rows: int) -> int:
        """Return how many drafted tokens a row may verify in the next steps."""
        most, engine = self.engine.options.max_draft_tokens, self.engine
        if not most or engine.options.deterministic:
            return most
        if engine.costs is None:
            return 0
        first = not self.stats.num_decode_forwards
        prompts = self._num_prompts()
        return choose_width(engine.acceptance, engine.costs, num_rows, most, hopeful=first, num_prompts=prompts)

    def time_step(self, num_rows: int, width: int, context: int) -> float:
        """Run one step over slots that hold nothing, and return its seconds."""
        step = self.step(num_rows, width - 1)
        self._lay_out(num_rows, width, context)
        step.load(list(range(num_rows)))
        step.read()  # the device is idle now
        started = time.perf_counter()
        step.run()
        step.read()
        seconds = time.perf_counter() - started
        step.take_counts()
        return seconds


class GridStep:
    """One step of a bucket of rows, with every buffer where it was.

    Args:
        call: Any call of the pool; what may differ between calls of the same key is read from buffers.
        num_rows: B.
        max_drafts: Tokens a row may verify.
    """

    def __init__(self, call: GridCall, num_rows: int, max_drafts: int) -> None:
        self._model, self._pool, self._stop_token_ids_T = call.model, call.pool, call.stop_token_ids_T
        self._max_drafts, self._padding_slot = max_drafts, call.pool.cache.padding_slot
        device = call.device
        self._slots_B = torch.full((num_rows,), self._padding_slot, dtype=torch.int64, device=device)
        self._homes_B = self._slots_B.clone()  # where each row's text stands, also after it has ended
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        self._num_live = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def load(self, slots: Sequence[int]) -> None:
        """Take the slots to advance."""
        self._num_live = len(slots)
        padded = torch.tensor([*slots, *[self._padding_slot] * (len(self._slots_B) - len(slots))])
        self._slots_B.copy_(padded)
        self._homes_B.copy_(self._slots_B)

    def run(self) -> None:
        """Advance them by one forward."""
        if self.graph is None:
            self.advance()
        else:
            self.graph.replay()

    def advance(self) -> None:
        """Do what :meth:`run` does, operation by operation."""
        slots_B, texts = self._slots_B, self._pool.texts
        settled, num_drafts_B = grid_step(
            self._model, texts, self._pool.attention, self._pool.batch_params, self._stop_token_ids_T, slots_B,
            self._max_drafts,
        )  # fmt: skip
        if self._max_drafts:
            is_live_B = (slots_B != self._padding_slot).to(torch.int64)
            seen_B = torch.minimum(num_drafts_B, settled.accepted_B + 1)
            has_drafts_B = (num_drafts_B > 0).to(torch.int64)
            counts = torch.stack([num_drafts_B, seen_B, settled.accepted_B, has_drafts_B])
            self._counts += (counts * is_live_B).sum(1)
        slots_B.copy_(slots_B.masked_fill(settled.done_B, self._padding_slot))

    def read(self) -> tuple[list[int], list[int]]:
        """Wait, and return the slots whose text has ended and how many tokens each loaded slot has written."""
        homes_B, texts = self._homes_B[: self._num_live], self._pool.texts
        ended_B = (self._slots_B[: self._num_live] == self._padding_slot).to(torch.int64)
        written_B = texts.lengths[homes_B] + 1 - texts.starts[homes_B]
        homes, ended, written = torch.stack([homes_B, ended_B, written_B]).tolist()
        return [slot for slot, is_over in zip(homes, ended, strict=True) if is_over], written

    def take_counts(self) -> list[int]:
        """Return what became of drafts since the last time: drafted, looked at, kept, rows that had any."""
        if not self._max_drafts:
            return [0] * len(self._counts)
        counts: list[int] = self._counts.tolist()
        self._counts.zero_()
        return counts


class Steps:
    """The steps of an engine, captured where the device has graphs; they are good for as long as nothing moves.

    Args:
        use_graphs: Capture; False runs every step operation by operation.
    """

    def __init__(self, use_graphs: bool) -> None:
        self.use_graphs = use_graphs
        self._steps: dict[object, GridStep] = {}
        self._addresses: object = None
        self._may_capture = True
        self._memory: Any = None  # one pool for all graphs

    def keep_for(self, addresses: object, *, may_capture: bool) -> None:
        """Drop every step if anything that all steps read or write has moved.

        Args:
            addresses: Of all of it, equal if nothing has.
            may_capture: Whether Python that the model runs may be left out of a replay.
        """
        addresses = addresses, may_capture
        self._may_capture = may_capture
        if addresses != self._addresses:
            self.drop()
            self._addresses = addresses

    def drop(self) -> None:
        """Forget all steps, and give back their memory."""
        for step in self._steps.values():
            if step.graph is not None:
                step.graph.reset()
        self._steps.clear()
        self._memory = self._addresses = None  # the handle of a pool dies with its last graph

    def get(self, key: object, make: Callable[[], GridStep]) -> GridStep:
        """Return a step, made and captured the first time."""
        if key not in self._steps:
            step = make()
            if self.use_graphs and self._may_capture:
                self._capture(step)
            self._steps[key] = step
        return self._steps[key]

    def _capture(self, step: GridStep) -> None:
        """Capture a step that has no slots loaded: it works on the padding slot meanwhile.

        Raises:
            RuntimeError: If a capture that failed left the device unusable.
        """
        stream = torch.cuda.current_stream()
        try:
            _warm_up(step)
            if self._memory is None:
                self._memory = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Threads that judge texts meanwhile may use the device.
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                step.advance()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # the capture's own is left in place by one that cannot be ended
            reason = str(error).splitlines()[0]
            _check_device(stream.device, reason)
            self.use_graphs = False
            logger.info(
                f"rollout: decode steps run operation by operation, they cannot be captured in graphs: {reason}"
            )
            return
        step.graph = graph


def has_hooks_anywhere(model: nn.Module) -> bool:
    """Whether hooks look at the calls of any part of a model: replays would not run them."""
    hooks = (hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    # transformers' own for gradient checkpointing, which changes nothing without gradients.
    return any(getattr(hook, "__name__", "") != "make_inputs_require_grads" for hook in hooks)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Make a GPU the current one: streams, graphs and kernels go there."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _warm_up(step: GridStep) -> None:
    """Run a step twice beside the current stream: kernels are compiled, and reads on the host are found out."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            step.advance()
            # Before the capture, which would leave the device in a bad state.
            with OnTheDevice():  # type: ignore[no-untyped-call]  # torch types no __init__
                step.advance()
    finally:
        torch.cuda.current_stream().wait_stream(side)  # also after an error: it may still write to the slots


def _check_device(device: torch.device, reason: str) -> None:
    try:
        torch.rand(1, device=device)
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise RuntimeError(
            f"The capture of a decode step failed ({reason}) and left the device unusable. Fix: rollout.graphs=false"
        ) from error


class OnTheDevice(TorchDispatchMode):
    """Refuses, in this thread, what the host would have to wait for or to bring: values, their number, its own data."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, unless it is one of these."""
        name = func.overloadpacket.__name__
        masks = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8) for each in masks)
        devices = {each.device.type for each in args if isinstance(each, torch.Tensor)}
        if "device" in (kwargs or {}):
            devices.add(torch.device(kwargs["device"]).type)  # type: ignore[index]  # it is in there
        crosses = name in ("_to_copy", "copy_") and len(devices) > 1
        brings = name == "lift_fresh" and args[0].dim() > 0  # a single number goes along with the kernel
        if by_mask or crosses or brings or name.rstrip("_") in _REFUSED:
            raise RuntimeError(f"{name} inside a decode step")
        return func(*args, **(kwargs or {}))


#: Operations whose result or shape the host reads, or that start from its numbers.
_REFUSED = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal",
    "is_nonzero", "bincount",
}  # fmt: skip
