"""Tokens a second and the decode step against what the bandwidth allows, beside transformers' generate."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.engines import make_engine
from benchmarks.gpu.models import bytes_a_step, generate, make_model, requests
from onpolicy_sdft.types import SamplingParams

TABLE = "speed"
MODELS = ("135M", "7B", "0.5B", "1.5B")  # by worth
ROWS = (1, 16, 64, 256)
_LEAST_SECONDS = 12  # left for one more measurement
_HF_TOKENS = 12  # its eager forwards of 30 layers take 50 ms each


def run(bench: Bench) -> None:
    """Measure every model at every number of rows, as far as the time goes."""
    bandwidth = bench.bandwidth()
    for name in bench.pick(MODELS, ("135M", "7B")):
        bench.attempt(TABLE, name, partial(_model, bench, name, bandwidth), _LEAST_SECONDS)


def _model(bench: Bench, name: str, bandwidth: float) -> None:
    model = make_model(bench, name)
    for rows in bench.pick(ROWS, (1, 3)):
        row = f"{name}, {rows} rows"
        bench.attempt(TABLE, row, partial(_engine, bench, model, row, rows, bandwidth), _LEAST_SECONDS)
        bench.attempt(TABLE, row, partial(_generate, bench, model, row, rows), _LEAST_SECONDS)


def _engine(bench: Bench, model: Any, row: str, rows: int, bandwidth: float) -> None:
    prompt, new = bench.pick((128, 128), (8, 8))
    asked = requests(model, [prompt] * rows, [new] * rows)
    engine = make_engine(model, rows)
    first = bench.clock(lambda: engine.generate(asked, SamplingParams()))  # compiles and captures
    seconds = bench.clock(lambda: engine.generate(asked, SamplingParams()))
    stats = engine.stats
    step_ms = stats.decode_seconds / stats.num_decode_forwards * 1e3
    floor_ms = bytes_a_step(model, rows, prompt + new // 2) / bandwidth * 1e3
    bench.note(
        TABLE, row, tokens_a_second=round(rows * new / seconds), step_ms=round(step_ms, 3),
        floor_ms=round(floor_ms, 4), of_floor=round(floor_ms / step_ms, 3),
        prefill_seconds=round(stats.prefill_seconds, 3), first_call_seconds=round(first, 1),
        captured=engine.steps.use_graphs, fused=engine.weights.fused,
    )  # fmt: skip


def _generate(bench: Bench, model: Any, row: str, rows: int) -> None:
    prompt, new = bench.pick((128, _HF_TOKENS), (8, 4))
    generate(bench, model, requests(model, [prompt] * rows, [2] * rows))
    asked = requests(model, [prompt] * rows, [new] * rows)
    seconds = bench.clock(lambda: generate(bench, model, asked))
    bench.note(TABLE, row, generate_tokens_a_second=round(rows * new / seconds))
