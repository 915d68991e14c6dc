"""Requests of many lengths: slots are refilled as texts end, where a batch waits for its longest."""

from __future__ import annotations

from functools import partial

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.engines import make_engine
from benchmarks.gpu.models import generate, lengths, make_model, requests
from onpolicy_sdft.types import SamplingParams

TABLE = "ragged requests of 0.5B"
_GENERATE_SECONDS = 25  # one batch of 64, as long as its longest text


def run(bench: Bench) -> None:
    """Write 256 texts of 1 to 320 tokens behind prompts of 32 to 384."""
    model = make_model(bench, "0.5B")
    num, longest = bench.pick((256, 320), (12, 16))
    prompts = lengths(num, lambda draw: draw.randint(*bench.pick((32, 384), (4, 12))))
    limits = lengths(num, lambda draw: max(1, min(longest, int(draw.expovariate(4 / longest)))))
    asked, total = requests(model, prompts, limits), sum(limits)

    def engine(row: str, num_slots: int | None) -> None:
        engine = make_engine(model, num_slots)
        engine.generate(asked, SamplingParams())
        seconds = bench.clock(lambda: engine.generate(asked, SamplingParams()))
        stats = engine.stats
        bench.note(
            TABLE, row, tokens_a_second=round(total / seconds), tokens=total, slots=stats.num_slots,
            prefill_seconds=round(stats.prefill_seconds, 3), decode_seconds=round(stats.decode_seconds, 3),
            steps=stats.num_decode_forwards,
        )  # fmt: skip

    def one_batch(row: str) -> None:
        few = asked[:64]
        seconds = bench.clock(lambda: generate(bench, model, few))
        total = sum(each.max_new_tokens for each in few)
        bench.note(TABLE, row, tokens_a_second=round(total / seconds), tokens=total)

    for num_slots in bench.pick((256, None, 64), (4, None)):
        row = "slots as the engine chooses" if num_slots is None else f"{num_slots} slots"
        bench.attempt(TABLE, row, partial(engine, row, num_slots))
    row = "generate, one batch of 64"
    bench.attempt(TABLE, row, partial(one_batch, row), _GENERATE_SECONDS)
