"""A whole trainer over a tiny model, without files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from onpolicy_sdft.config.schema import ContextConfig, OptimConfig, ScreeningConfig
from onpolicy_sdft.data.prepare import prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.models.policy import Policy
from onpolicy_sdft.models.weights import PolicyWeights
from onpolicy_sdft.objectives.objective import Objective
from onpolicy_sdft.rollout.engine import EngineOptions, RolloutEngine
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.train.backend import Backend
from onpolicy_sdft.train.batch import make_batch
from onpolicy_sdft.train.optim import make_optimizer, make_schedule
from onpolicy_sdft.train.pairing import Pairing
from onpolicy_sdft.train.source import PolicySource, Sampling, TargetSource
from onpolicy_sdft.train.state import TrainState
from onpolicy_sdft.train.step import Trainer
from onpolicy_sdft.train.teacher_scorer import TeacherScorer
from onpolicy_sdft.types import (
    Demonstration,
    MicroBatch,
    PromptPair,
    RecordOptions,
    SamplingParams,
    StepMetrics,
    Target,
    Turn,
)

TERMINATOR = 257
DEMONSTRATIONS = [
    Demonstration(f"example-{i}", (Turn("user", f"question {i} " + "x" * i),), "answer " + "y" * (1 + 2 * i))
    for i in range(6)
]


@dataclass
class Bench:
    """A trainer and what it was made of."""

    trainer: Trainer
    model: torch.nn.Module
    pairs: Sequence[PromptPair]
    rollout_backend: HFBackend | RolloutEngine
    optimizer: torch.optim.Optimizer

    def step(self) -> StepMetrics:
        """Take a step over all demonstrations."""
        return self.trainer.train_step(make_batch(self.pairs, self.trainer.num_samples, self.trainer.backend))

    def micro_batches(self, targets: Sequence[Target]) -> list[MicroBatch]:
        """Return the micro-batches that a step makes of targets."""
        trainer = self.trainer
        return trainer.pairing.micro_batches(targets, trainer.state.num_halvings, trainer.backend)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Gradients of one step, caught before they are used."""
        caught: dict[str, torch.Tensor] = {}

        def catch(max_norm: float) -> float:
            caught.update({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None})
            return float("nan")  # as a step that is skipped: nothing is updated

        self.trainer.backend.optimizer_step = catch  # type: ignore[method-assign]
        self.step()
        return caught


@pytest.fixture
def make_bench(tokenizer: Any, tiny_model: Callable[..., Any]) -> Callable[..., Bench]:
    def make(
        *,
        dtype: torch.dtype = torch.float32,
        lora: dict[str, Any] | None = None,
        targets: str = "policy",
        params: SamplingParams | None = None,
        screening: ScreeningConfig | None = None,
        micro_batch_tokens: int = 100_000,
        chunk_tokens: int = 1024,
        max_new_tokens: int = 24,
        lr: float = 1e-2,
        merge_adapter: bool = True,
        seed: int = 0,
        rollouts: str = "engine",
        objective: dict[str, Any] | None = None,
        teacher: dict[str, Any] | None = None,
        sampling: dict[str, Any] | None = None,
        pairing: dict[str, Any] | None = None,
        num_samples: int = 1,
    ) -> Bench:
        model: Any = tiny_model(dtype)
        if lora is not None:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = get_peft_model(
                    model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **lora)
                )
        context = ContextConfig()
        renderer = Renderer(tokenizer, context)
        pairs = prepare(DEMONSTRATIONS, renderer, context, seed).pairs
        writes: HFBackend | RolloutEngine
        if rollouts == "hf":
            writes = HFBackend(model, (TERMINATOR,), TERMINATOR, 4, merge_adapter)
        else:
            options = EngineOptions(num_slots=4, max_draft_tokens=3, deterministic=True)
            writes = RolloutEngine(model, (TERMINATOR,), LocalWeights(model, merge_adapter), options)
        backend = Backend("fp32")
        optimizer = make_optimizer(model, OptimConfig(lr=lr))
        teaches = {"kind": "live", "anchor": None, **(teacher or {})}
        kind, anchor = teaches.pop("kind"), teaches.pop("anchor")
        weights = PolicyWeights(model, {kind, *filter(None, [anchor])}, **teaches)
        policy, prepared = backend.prepare(Policy(model), optimizer)
        minimised = Objective(chunk_tokens=chunk_tokens, **(objective or {}))
        asked = Sampling(
            params or SamplingParams(), max_new_tokens, seed,
            **{"record": RecordOptions(hidden=minimised.needs_teacher), **(sampling or {})},
        )  # fmt: skip
        writing = partial(weights.showing, kind) if asked.prompt == "teacher" else contextlib.nullcontext
        source = PolicySource(writes, asked, writing=writing)
        screening = screening or ScreeningConfig(truncated="keep", looping="keep", length="keep", empty="keep")
        trainer = Trainer(
            policy=policy,
            source=source if targets == "policy" else TargetSource(),
            screen=Screen(screening, load_task("free_form", {}), renderer.decode),
            pairing=Pairing(
                micro_batch_tokens, TERMINATOR, has_distributions=minimised.needs_teacher, **(pairing or {})
            ),
            teacher_scorer=TeacherScorer(weights, kind, anchor, minimised, TERMINATOR),
            objective=minimised,
            weights=weights,
            backend=backend,
            schedule=make_schedule(optimizer, OptimConfig(lr=lr, warmup_steps=0), 100),
            max_grad_norm=0.0,
            state=TrainState(),
            num_samples=num_samples,
        )
        return Bench(trainer, model, pairs, writes, prepared)

    return make
