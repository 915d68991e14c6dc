"""Seconds to write and judge a batch on a CPU: judged after the rollout, and beside it; paired, in turns.

A tiny random model writes; each text is judged as one of a few programs with its tests (``python_code``), so that the
checks are those of a code task whatever the model says.

    python -m benchmarks.step.screening --rounds 20
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from onpolicy_sdft.config.schema import ScreeningConfig
from onpolicy_sdft.rollout.engine import EngineOptions, RolloutEngine
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.train.source import PolicySource, Sampling
from onpolicy_sdft.types import Demonstration, PromptPair, SamplingParams, Turn

RIGHT = "def f(x):\n    return sorted(x)\n"
PROGRAMS = (RIGHT, "import re\n" + RIGHT, "def f(x):\n    return x\n", "import collections\ndef f(x):\n    return y\n")
VOCAB, END = 512, 1


def make_source(num_tokens: int) -> PolicySource:
    """A tiny model behind the engine."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, max_position_embeddings=1024, **sizes)).eval()
    engine = RolloutEngine(model, (END,), LocalWeights(model), EngineOptions(num_slots=16, deterministic=True))
    return PolicySource(engine, Sampling(SamplingParams(), num_tokens, seed=0, drafts=()))


def decode(token_ids: Sequence[int]) -> str:
    """Let a text stand for one of the programs."""
    return f"```python\n{PROGRAMS[sum(token_ids) % len(PROGRAMS)]}```"


def make_prompt_pairs(num: int) -> list[PromptPair]:
    """Demonstrations of one problem, each with a prompt of its own."""
    fields = {"tests": ["assert f([2, 1]) == [1, 2]"]}
    return [
        PromptPair(Demonstration(str(i), (Turn("user", "Sort."),), RIGHT, fields), (2, i + 2), (2, 3, i + 2), (5,) * 64)
        for i in range(num)
    ]


def after(source: PolicySource, screen: Screen, pairs: Sequence[PromptPair], step: int) -> list[str]:
    """Judge when all is written."""
    rollouts = source.rollouts(pairs, step=step)
    return [target.reason for target in screen(pairs, rollouts, lambda v, n: source.rollouts(v, step=step, attempt=n))]


def beside(source: PolicySource, screen: Screen, pairs: Sequence[PromptPair], step: int) -> list[str]:
    """Judge what has ended while the rest is written, as a step of training does."""
    with screen.watch(pairs) as watch:
        rollouts = source.rollouts(pairs, step=step, watch=watch)
        targets = watch.targets(rollouts, lambda v, n: source.rollouts(v, step=step, attempt=n))
    return [target.reason for target in targets]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--check", choices=["fallback", "resample"], default="fallback")
    options = parser.parse_args()
    source, pairs = make_source(options.max_new_tokens), make_prompt_pairs(options.batch_size)
    task = load_task("python_code", {"allow_execution": True})
    kept = dict.fromkeys(("empty", "truncated", "looping", "banned", "length"), "keep")
    screen = Screen(ScreeningConfig(**kept, check=options.check), task, decode)  # type: ignore[arg-type]
    ways: dict[str, Callable[..., list[str]]] = {"after": after, "beside": beside}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(-1, options.rounds):  # the first warms up
        reasons = []
        for name, way in ways.items() if step % 2 else reversed(ways.items()):
            started = time.perf_counter()
            reasons.append(way(source, screen, pairs, step + 1))
            if step >= 0:
                seconds[name].append(time.perf_counter() - started)
        assert reasons[0] == reasons[1]
    ratios = [b / a for a, b in zip(seconds["after"], seconds["beside"], strict=True)]
    for name, found in seconds.items():
        print(f"{name}: {statistics.median(found):.2f} s ({min(found):.2f}-{max(found):.2f})")
    print(f"beside / after: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}), n = {len(ratios)}")


if __name__ == "__main__":
    main()
