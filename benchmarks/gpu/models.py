"""Models of known shapes with random weights, a byte tokenizer, requests, and transformers' generate beside the engine.

Speed does not depend on what the weights say, so nothing has to be carried to a machine without a network.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from benchmarks.gpu.bench import Bench
from onpolicy_sdft.types import NoiseKey, RolloutRequest

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: config class, layers, hidden, intermediate, heads, key-value heads, vocabulary, tied
SHAPES: dict[str, tuple[Any, int, int, int, int, int, int, bool]] = {
    "135M": (LlamaConfig, 30, 576, 1536, 9, 3, 49152, True),  # SmolLM2-135M
    "0.5B": (Qwen2Config, 24, 896, 4864, 14, 2, 151936, True),  # Qwen2.5-0.5B
    "1.5B": (Qwen2Config, 28, 1536, 8960, 12, 2, 151936, True),  # Qwen2.5-1.5B
    "7B": (Qwen2Config, 28, 3584, 18944, 28, 4, 152064, False),  # Qwen2.5-7B
}
_REHEARSED = (LlamaConfig, 2, 48, 64, 6, 2, 300, True)


def make_model(bench: Bench, name: str, dtype: torch.dtype | None = None) -> Any:
    """Make a model of a shape on the device, the same every time."""
    kind, layers, hidden, intermediate, heads, kv_heads, vocabulary, tied = bench.pick(SHAPES[name], _REHEARSED)
    config = kind(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied,
        max_position_embeddings=8192, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with bench.device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype or bench.dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def bytes_a_step(model: Any, rows: int, context: int) -> int:
    """Return what a decode step has to read: every weight once, and the keys and values of each row."""
    config = model.config
    weights = sum(each.nbytes for each in model.parameters())
    if not config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.nbytes  # of which a few rows are read
    head_size = config.hidden_size // config.num_attention_heads
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * model.dtype.itemsize
    return int(weights + rows * context * position)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of one token a byte with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    fast.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    fast.pad_token, fast.chat_template = "<|im_end|>", CHAT_TEMPLATE
    return fast


def requests(
    model: Any, prompts: Sequence[int], limits: Sequence[int], repeat: bool = False, seed: int = 0
) -> list[RolloutRequest]:
    """Make requests of random tokens.

    Args:
        model: Whose vocabulary.
        prompts: Tokens of each prompt.
        limits: Tokens of each completion; random models never stop by themselves.
        repeat: Give each a piece of its prompt as a draft.
        seed: Of the tokens.
    """
    draw, found = random.Random(seed), []
    for index, (length, limit) in enumerate(zip(prompts, limits, strict=True)):
        ids = tuple(draw.randrange(5, model.config.vocab_size) for _ in range(length))
        drafts = (ids[1:12], ids[: length // 2]) if repeat else ()
        found.append(RolloutRequest(ids, NoiseKey(seed, 0, str(index)), limit, drafts))
    return found


def generate(bench: Bench, model: Any, asked: Sequence[RolloutRequest], sample: bool = True) -> list[list[int]]:
    """Write one batch with transformers' generate, every text as long as the longest limit."""
    limit = max(each.max_new_tokens for each in asked)
    longest = max(len(each.prompt_token_ids) for each in asked)
    ids = torch.zeros(len(asked), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, each in enumerate(asked):
        ids[row, longest - len(each.prompt_token_ids) :] = torch.tensor(each.prompt_token_ids)
        mask[row, longest - len(each.prompt_token_ids) :] = 1
    with torch.no_grad():
        out = model.generate(
            input_ids=ids.to(bench.device), attention_mask=mask.to(bench.device), max_new_tokens=limit,
            do_sample=sample, top_k=0, top_p=1.0, temperature=1.0, use_cache=True,
        )  # fmt: skip
    found: list[list[int]] = out[:, longest:].tolist()
    return found


def lengths(num: int, draw: Callable[[random.Random], int], seed: int = 0) -> list[int]:
    """Draw lengths, the same every time."""
    generator = random.Random(seed)
    return [draw(generator) for _ in range(num)]
