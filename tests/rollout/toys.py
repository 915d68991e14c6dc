"""Tiny random models of several families, requests, and the rule for when two texts may differ."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from onpolicy_sdft.models.load import settle_attention
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.policy import body, head_of
from onpolicy_sdft.rollout.engine import EngineOptions, RolloutEngine
from onpolicy_sdft.rollout.noise import gumbel_noise, key_words
from onpolicy_sdft.rollout.sampling import BLOCK, Vocabulary, warpers
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.types import NoiseKey, RolloutRequest, SamplingParams

END = 95
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3, "bos_token_id": 1,
    "eos_token_id": END, "pad_token_id": END,
}  # fmt: skip
ONE_KV = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=8),
    "gemma": lambda: GemmaConfig(**SIZES, head_dim=8),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
    "gpt_neox": lambda: GPTNeoXConfig(**ONE_KV),
    "gpt_oss": lambda: GptOssConfig(
        **SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
}  # fmt: skip


def make(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model of a family, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[family]()).to(dtype).eval()
    settle_attention(model)
    return model


def with_adapter(model: Any) -> Any:
    """A model in random LoRA adapters on all its linears."""
    wrapped = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.5)
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return wrapped.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """What a model says of one short text."""
    found: torch.Tensor = inner_model(model)(input_ids=IDS, use_cache=False).logits
    return found


def ask(num: int = 10, limit: int = 24, seed: int = 0, step: int = 0, **more: Any) -> list[RolloutRequest]:
    """Requests with prompts and limits of many lengths, each with a piece of its prompt as a draft."""
    generator = torch.Generator().manual_seed(seed)
    requests = []
    for index in range(num):
        length = int(torch.randint(2, 40, (), generator=generator))
        prompt = tuple(torch.randint(0, END, (length,), generator=generator).tolist())
        drafts = (prompt[1:12], prompt[: length // 2] + prompt[:2])
        requests.append(RolloutRequest(prompt, NoiseKey(seed, step, str(index)), limit + index, drafts, **more))
    return requests


def engine(
    model: Any,
    stop_token_ids: tuple[int, ...] = (END,),
    weights: Any = None,
    vocabulary: Vocabulary | None = None,
    **options: Any,
) -> RolloutEngine:
    """An engine whose shapes follow from its options alone."""
    options = {"num_slots": 4, "max_draft_tokens": 4, "deterministic": True, **options}
    return RolloutEngine(
        model, stop_token_ids, weights or LocalWeights(model), EngineOptions(**options), vocabulary=vocabulary
    )


def tokens(rollouts: Any) -> list[tuple[int, ...]]:
    """What was written."""
    return [rollout.token_ids for rollout in rollouts]


def assert_same_but_for_ties(
    model: Any, ours: Any, theirs: Any, params: SamplingParams, closeness: float = 1e-4
) -> None:
    """The first token in which two texts differ stands where the two best noisy scores are that close."""
    for mine, other in zip(ours, theirs, strict=True):
        if mine.token_ids == other.token_ids:
            continue
        pairs = zip(mine.token_ids, other.token_ids, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        assert place is not None, "one text ends where the other goes on"
        margin = noisy_margin(model, mine.prompt_token_ids + mine.token_ids[:place], mine.key, place, params)
        assert margin < closeness, f"{mine.key} differs at token {place}, where the margin is {margin:.2g}"


@torch.no_grad()
def noisy_margin(model: Any, ids: tuple[int, ...], key: NoiseKey, place: int, params: SamplingParams) -> float:
    """How far the two best scores are apart, of blocks or of tokens within the best block, by a plain forward."""
    hidden = body(model)(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1:]
    scores = warpers(params)(torch.tensor([ids]), head_of(model).logits(hidden).float())
    if params.greedy:
        best = scores[0].topk(2).values
        return float(best[0] - best[1])
    words, places = key_words([key]), torch.tensor([place])
    masses = torch.stack([part.exp().sum() for part in torch.log_softmax(scores[0], -1).split(BLOCK)]).log()
    blocks = torch.arange(1 << 30, (1 << 30) + len(masses), dtype=torch.int32)[None]
    noisy_blocks = masses + gumbel_noise(words, places, blocks)[0]
    block = int(noisy_blocks.argmax())
    inside = scores[0, block * BLOCK : (block + 1) * BLOCK]
    ids_in = torch.arange(block * BLOCK, block * BLOCK + len(inside), dtype=torch.int32)[None]
    margins = []
    for noisy in (noisy_blocks, inside + gumbel_noise(words, places, ids_in)[0]):
        best = noisy.topk(min(2, len(noisy))).values
        margins.append(float(best[0] - best[-1]) if len(best) > 1 else float("inf"))
    return min(margins)
