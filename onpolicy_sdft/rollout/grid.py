"""Decoding in steps of a fixed shape, for devices that the host must not keep waiting.

A step is :func:`~onpolicy_sdft.rollout.decode.grid_step` over a bucket of rows, run several times before the host looks
at what it did. On CUDA it is captured in a graph the first time and replayed from then on; elsewhere it runs as it is,
which is how it is tested. Rows without a slot, and those whose text has ended, work on the trash row.

Shape letters: B rows of the bucket.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from onpolicy_sdft.rollout.call import Call
from onpolicy_sdft.rollout.decode import grid_step
from onpolicy_sdft.rollout.speculation import choose_width

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Rows of a step: few sizes, so that few graphs are captured; above, a step has as many rows as there are slots.
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


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
        self.stats.num_drafted_tokens += num_drafted
        self.stats.num_accepted_tokens += num_accepted
        self._leave(finished, num_tokens)
        self.stats.decode_seconds += time.perf_counter() - started

    def step(self, num_rows: int, max_drafts: int) -> GridStep:
        """Return the step of the smallest bucket that holds so many rows."""
        size = min((*(b for b in BUCKETS if b >= num_rows), self.pool.num_slots))
        laws = self.pool.laws
        key = (size, max_drafts, laws.is_raw, laws.is_filtered, laws.is_penalised)
        return self.engine.steps.get(key, lambda: GridStep(self, size, max_drafts))

    def _max_drafts(self, num_rows: int) -> int:
        """Return how many drafted tokens a row may verify in the next steps."""
        most, engine = self.engine.options.max_draft_tokens, self.engine
        if not most or engine.options.deterministic:
            return most
        if engine.costs is None:
            return 0
        first = not self.stats.num_decode_forwards
        return choose_width(engine.acceptance, engine.costs, num_rows, most, hopeful=first)

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
        self._model, self._pool, self._terminators_T = call.model, call.pool, call.terminators_T
        self._max_drafts, self._trash = max_drafts, call.pool.cache.trash
        device = call.device
        self._slots_B = torch.full((num_rows,), self._trash, dtype=torch.int64, device=device)
        self._homes_B = self._slots_B.clone()  # where each row's text stands, also after it has ended
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        self._num_live = 0
        self.replay: Callable[[], None] = self.advance

    def load(self, slots: Sequence[int]) -> None:
        """Take the slots to advance."""
        self._num_live = len(slots)
        padded = torch.tensor([*slots, *[self._trash] * (len(self._slots_B) - len(slots))])
        self._slots_B.copy_(padded)
        self._homes_B.copy_(self._slots_B)

    def run(self) -> None:
        """Advance them by one forward."""
        self.replay()

    def advance(self) -> None:
        """Do what :meth:`run` does, operation by operation."""
        slots_B, texts = self._slots_B, self._pool.texts
        settled, num_drafts_B = grid_step(
            self._model, texts, self._pool.attention, self._pool.laws, self._terminators_T, slots_B, self._max_drafts,
        )  # fmt: skip
        if self._max_drafts:
            is_live_B = (slots_B != self._trash).to(torch.int64)
            seen_B = torch.minimum(num_drafts_B, settled.accepted_B + 1)
            has_drafts_B = (num_drafts_B > 0).to(torch.int64)
            counts = torch.stack([num_drafts_B, seen_B, settled.accepted_B, has_drafts_B])
            self._counts += (counts * is_live_B).sum(1)
        slots_B.copy_(slots_B.masked_fill(settled.done_B, self._trash))

    def read(self) -> tuple[list[int], list[int]]:
        """Wait, and return the slots whose text has ended and how many tokens each loaded slot has written."""
        homes_B, texts = self._homes_B[: self._num_live], self._pool.texts
        ended_B = (self._slots_B[: self._num_live] == self._trash).to(torch.int64)
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
        say: Told when a step cannot be captured.
    """

    def __init__(self, use_graphs: bool, say: Callable[[str], None]) -> None:
        self.use_graphs = use_graphs
        self._say = say
        self._steps: dict[object, GridStep] = {}
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._addresses: object = None
        self._memory: Any = None  # one pool for all graphs

    def keep_for(self, addresses: object) -> None:
        """Drop every step if anything that steps read or write has moved."""
        if addresses != self._addresses:
            self.drop()
            self._addresses = addresses

    def drop(self) -> None:
        """Forget all steps, and give back their memory."""
        self._steps.clear()
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        self._memory = self._addresses = None  # the handle of a pool dies with its last graph

    def get(self, key: object, make: Callable[[], GridStep]) -> GridStep:
        """Return a step, made and captured the first time."""
        if key not in self._steps:
            step = make()
            if self.use_graphs:
                self._capture(step)
            self._steps[key] = step
        return self._steps[key]

    def _capture(self, step: GridStep) -> None:
        """Capture a step that has no slots loaded: it works on the trash row meanwhile."""
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step.advance()  # kernels are compiled
                with _no_waiting():  # a model that reads values on the host is found out before the capture, not by it
                    step.advance()
            torch.cuda.current_stream().wait_stream(side)
            if self._memory is None:
                self._memory = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Threads that judge texts meanwhile may use the device.
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                step.advance()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.use_graphs = False
            self._say(
                f"rollout: decode steps are not captured in graphs ({str(error).splitlines()[0]}): going on without"
            )
            return
        self._graphs.append(graph)
        step.replay = graph.replay


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise where the host waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
