"""The kernels of one decode step: names, calls and time, as the profiler sees them.

Two calls that differ by some decode steps are profiled; what the longer one has more is those steps' alone, without
prompts and ends. Graphs that are replayed show their kernels like any others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.engines import make_engine
from benchmarks.gpu.models import make_model, requests
from onpolicy_sdft.rollout.engine import RolloutEngine
from onpolicy_sdft.types import RolloutRequest, SamplingParams

TABLE = "kernels a decode step"
CASES = (("135M", 1), ("0.5B", 256), ("7B", 64), ("0.5B", 1), ("7B", 256))  # by worth
STEPS = 16  # by which the calls differ: two looks of the host
TOP = 25
_NAME = 90  # letters of a kernel's name that are shown
_LEAST_SECONDS = 8


def run(bench: Bench) -> None:
    """Profile each case, as far as the time goes."""
    for name, rows in bench.pick(CASES, CASES[:1]):
        bench.attempt(TABLE, f"{name}, {rows} rows", partial(_profile, bench, name, rows), _LEAST_SECONDS)


def _profile(bench: Bench, name: str, rows: int) -> None:
    model = make_model(bench, name)
    engine = make_engine(model, rows)
    num_steps = bench.pick(STEPS, 2)
    short, long = (requests(model, [32] * rows, [1 + steps] * rows) for steps in (num_steps, 2 * num_steps))
    engine.generate(long, SamplingParams())  # compiles and captures
    before, after = (_kernels(bench, engine, asked) for asked in (short, long))
    calls = {each: (after[each][0] - before.get(each, (0, 0.0))[0]) / num_steps for each in after}
    times = {each: (after[each][1] - before.get(each, (0, 0.0))[1]) / num_steps for each in after}
    row, whole = f"{name}, {rows} rows", sum(times.values())
    copies = sum(each for key, each in calls.items() if key.startswith(("Memcpy", "Memset")))
    bench.note(
        TABLE, row, kernels=round(sum(calls.values()) - copies, 1), copies_and_fills=round(copies, 1),
        busy_ms=round(whole / 1e3, 3),
    )  # fmt: skip
    for key, time in Counter(times).most_common(TOP):
        bench.note(
            f"{TABLE}: {row}", key[:_NAME], calls=round(calls[key], 2), us=round(time, 1),
            share=round(time / max(whole, 1e-9), 3),
        )  # fmt: skip


def _kernels(bench: Bench, engine: RolloutEngine, asked: Sequence[RolloutRequest]) -> dict[str, tuple[int, float]]:
    """Return calls and microseconds of each kernel of a call of the engine; on a CPU of each operation."""
    on_gpu = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        engine.generate(asked, SamplingParams())
        bench.wait()
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events: list[Any] = [each for each in seen.key_averages() if each.device_type == kind]
    return {
        each.key: (each.count, each.self_device_time_total if on_gpu else each.self_cpu_time_total) for each in events
    }
