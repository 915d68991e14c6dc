"""Optimizer steps: seconds, their parts and peak memory of each method, and packed learning beside padded."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import make_model, make_tokenizer
from onpolicy_sdft.build.bundle import ModelBundle
from onpolicy_sdft.build.data import load_rows, make_prompt_pairs
from onpolicy_sdft.build.trainer import make_trainer
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.config.schema import RunConfig, TrainConfig
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.models.embedded import PREFIX, embedded_path
from onpolicy_sdft.models.load import LoadedModel, load, terminator_ids
from onpolicy_sdft.models.lora import prepare_trainable
from onpolicy_sdft.runs.progress import Progress
from onpolicy_sdft.train.backend import Backend
from onpolicy_sdft.train.batch import make_batch
from onpolicy_sdft.train.loop import Plan
from onpolicy_sdft.train.step import Trainer

TABLE, PACKED = "optimizer steps", "packed and padded learning"
METHODS = ("sft", "sdft", "sdft_kl")
EMBEDDED = "smollm2-135m-instruct"
LAYOUT = "layout"  # the option of ``train`` that says how rows of a micro-batch lie
_WARMUP = 2
_PARTS = ("rollout", "screen", "score", "learn")
_LEAST_SECONDS = 10
_KEEP = {
    f"screening.{name}": "keep" for name in ("empty", "truncated", "control", "looping", "banned", "length", "check")
}


class Steps:
    """A trainer that takes one step after another over the same rows.

    Args:
        bench: Device and sizes.
        name: Shape of the model.
        files: Configs.
        overrides: Options.
    """

    def __init__(self, bench: Bench, name: str, files: Sequence[str], overrides: dict[str, Any]) -> None:
        self.config = load_config(*files, **_shared(bench), **overrides)
        bundle, self.is_real = load_model(bench, name, self.config)
        data = make_prompt_pairs(self.config, bundle, *load_rows(self.config))
        model = prepare_trainable(bundle.loaded.model, self.config.lora, self.config.model, self.config.train.seed)
        self.pairs, self._progress = data.prepared.pairs, Progress("step", 1, "steps", enabled=False)
        self._progress.__enter__()
        backend = Backend(self.config.train.precision)
        self.trainer: Trainer = make_trainer(
            self.config, bundle, data, model, backend, Plan(1000, None), self._progress
        )

    def take(self) -> dict[str, float]:
        """Take one step, and return its figures."""
        size, step = self.config.train.batch_size, self.trainer.state.step
        rows = [self.pairs[(step * size + index) % len(self.pairs)] for index in range(size)]
        return dict(self.trainer.train_step(make_batch(rows, self.trainer.num_samples, self.trainer.backend)).values)


def run(bench: Bench) -> None:
    """Measure methods at both sizes, then layouts."""
    for name in ("135M", "1.5B"):
        for method in METHODS:
            bench.attempt(TABLE, f"{name}, {method}", partial(_method, bench, name, method), _LEAST_SECONDS)
    _packed(bench)


def _shared(bench: Bench) -> dict[str, Any]:
    return {
        "eval.sets": [], "eval.kl_prompts": 0, "train.deterministic": False, "optim.warmup_steps": 0,
        "train.batch_size": bench.pick(64, 4), "train.micro_batch_tokens": bench.pick(16384, 4096),

        "train.precision": bench.pick("bf16", "fp32"), "model.dtype": bench.pick("bfloat16", "float32"),
        "context.max_teacher_tokens": 4096, "context.max_student_tokens": 4096,
    }  # fmt: skip


def _has_weights(bench: Bench, name: str) -> bool:
    return name == "135M" and not bench.rehearse and embedded_path(EMBEDDED).is_dir()


def load_model(bench: Bench, name: str, config: RunConfig) -> tuple[ModelBundle, bool]:
    """Load the embedded model where it was put, else make one of the shape; say which it was."""
    is_real = _has_weights(bench, name)
    if is_real:
        config.model.name = PREFIX + EMBEDDED
        loaded = load(config.model)
        loaded.model.to(bench.device)
    else:
        tokenizer, model = make_tokenizer(), make_model(bench, name)
        model.config._name_or_path = f"random {name}"
        loaded = LoadedModel(model, tokenizer, f"random {name}")
    renderer = Renderer(loaded.tokenizer, config.context)
    stops = {*terminator_ids(loaded.model, loaded.tokenizer), renderer.terminator_id}
    return ModelBundle(loaded, renderer, tuple(sorted(stops))), is_real


def _method(bench: Bench, name: str, method: str) -> None:
    """Take some steps of a method."""
    is_real = _has_weights(bench, name)
    files = ["configs/online/quickstart.yaml", f"configs/methods/{method}.yaml"]
    # A random model never stops: its texts are made about as long as the demonstrations, and none would pass a check.
    random = {**_KEEP, "rollout.max_new_tokens": bench.pick(192, 8)}
    overrides = {"data.limit": bench.pick(512, 8), **({} if is_real else random)}
    steps = Steps(bench, name, files, overrides)
    taken: list[dict[str, float]] = []
    share = bench.left() / (2 * len(METHODS))
    started = bench.left()
    for _ in range(bench.pick(10, 3)):
        taken.append(steps.take())
        if len(taken) > _WARMUP and started - bench.left() > share:
            break
    late = taken[_WARMUP:] or taken

    def middle(key: str) -> float:
        return statistics.median(each.get(key, 0.0) for each in late)

    seconds, tokens = middle("time/step_seconds"), middle("train/num_loss_tokens")
    bench.note(
        TABLE, f"{name}, {method}", weights="real" if steps.is_real else "random", steps=len(late),
        seconds=round(seconds, 3), **{f"{part}_seconds": round(middle(f"time/{part}_seconds"), 3) for part in _PARTS},
        loss_tokens=round(tokens), ms_a_loss_token=round(seconds / max(tokens, 1) * 1e3, 4),
        rollout_tokens_a_second=round(middle("rollout/tokens_per_second")),
        rollout_mib=round(middle("memory/rollout_mib")), learn_mib=round(middle("memory/learn_mib")),
    )  # fmt: skip


def _packed(bench: Bench) -> None:
    """Learn rows of equal lengths and of lengths that spread 1 to 8, packed and padded, step by step in turn."""
    if LAYOUT not in {each.name for each in fields(TrainConfig)}:
        bench.note(PACKED, "all", left_out=f"this build has no option train.{LAYOUT}")
        return
    for name in ("135M", "1.5B"):
        for spread in (8, 1):
            row = f"{name}, lengths spread 1 to {spread}"
            bench.attempt(PACKED, row, partial(_layouts, bench, name, row, spread), _LEAST_SECONDS)


def _layouts(bench: Bench, name: str, row: str, spread: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = _write_rows(bench, spread, Path(folder))
        trainers = {kind: Steps(bench, name, files, {f"train.{LAYOUT}": kind}) for kind in ("packed", "padded")}
    seconds: dict[str, list[float]] = {kind: [] for kind in trainers}
    for number in range(bench.pick(8, 2)):
        for kind, steps in trainers.items():
            found = steps.take()
            if number >= bench.pick(_WARMUP, 1):
                seconds[kind].append(found["time/learn_seconds"])
    ratios = [padded / packed for packed, padded in zip(seconds["packed"], seconds["padded"], strict=True)]
    bench.note(
        PACKED, row, **{f"{kind}_seconds": round(statistics.median(each), 4) for kind, each in seconds.items()},
        times_as_fast=round(statistics.median(ratios), 2),
    )  # fmt: skip


def _write_rows(bench: Bench, spread: int, folder: Path) -> list[str]:
    """Write rows whose answers are of lengths from the longest down to a part of it; return the configs."""
    longest, size = bench.pick((1024, 64), (64, 4))
    lines = []
    for index in range(size):
        words = longest // 2 // (1 + (spread - 1) * index // max(1, size - 1))  # of two letters
        lines.append(json.dumps({"prompt": f"row {index}", "response": "a " * words}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "run.yaml").write_text(
        json.dumps({"model": {"name": "given"}, "data": {"path": str(folder / "rows.jsonl")}})
    )
    return [str(folder / "run.yaml"), "configs/methods/sft.yaml"]
