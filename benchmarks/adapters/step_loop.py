"""A plain loop of transformers and PEFT in the step benchmark; see ``steps.py``.

    python -m benchmarks.adapters.step_loop '{"model": DIR, "rows": [...], ...}'

``generate`` writes behind the teacher's prompts; what it wrote is learned from the bare prompts.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.adapters.steps import Channel, peak_mib


def asked(prompts: list[str]) -> list[list[dict[str, str]]]:
    """Return prompts as conversations."""
    return [[{"role": "user", "content": prompt}] for prompt in prompts]


def write(model: Any, inputs: Any, max_new_tokens: int, pad: int) -> list[torch.Tensor]:
    """Return what the model writes behind padded prompts, each text up to its end."""
    model.eval()
    output = model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=pad
    )
    written = output[:, inputs["input_ids"].shape[1] :]
    ends = torch.isin(written, torch.tensor(model.generation_config.eos_token_id)).int()
    return [row[end.cumsum(0) - end == 0] for row, end in zip(written, ends, strict=True)]


def learn(model: Any, prompts: list[torch.Tensor], texts: list[torch.Tensor], rows_a_forward: int, pad: int) -> None:
    """Add the gradient of the mean loss of all texts' tokens."""
    model.train()
    num_tokens = sum(map(len, texts))
    for first in range(0, len(texts), rows_a_forward):
        pairs = list(zip(prompts, texts, strict=True))[first : first + rows_a_forward]
        ids = [torch.cat(pair) for pair in pairs]
        labels = [torch.cat([torch.full_like(prompt, -100), text]) for prompt, text in pairs]
        model(
            input_ids=pad_sequence(ids, batch_first=True, padding_value=pad),
            attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            labels=pad_sequence(labels, batch_first=True, padding_value=-100),
            num_items_in_batch=num_tokens,
        ).loss.backward()


def main() -> None:
    channel, settings = Channel(), json.loads(sys.argv[1])
    tokenizer: Any = AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(**settings["lora"]))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, settings["lr"], betas=(0.9, 0.95), weight_decay=0.0)
    rows = iter(settings["rows"])
    channel.say({"ready": True, "num_parameters": sum(p.numel() for p in model.parameters())})
    while channel.wait():
        started = time.perf_counter()
        batch = list(islice(rows, settings["batch_size"]))
        bare = [row["prompt"] for row in batch]
        shown = [
            settings["teacher_prompt"].format(prompt=row["prompt"], privileged_context=row["response"]) for row in batch
        ]
        render = {"add_generation_prompt": True, "return_dict": True}
        inputs = tokenizer.apply_chat_template(asked(shown), padding=True, return_tensors="pt", **render)
        prompts = list(map(torch.tensor, tokenizer.apply_chat_template(asked(bare), **render)["input_ids"]))
        texts = write(model, inputs, settings["max_new_tokens"], tokenizer.pad_token_id)
        rollout = time.perf_counter() - started
        learn(model, prompts, texts, settings["rows_a_forward"], tokenizer.pad_token_id)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - started
        channel.say(
            {
                "seconds": seconds,
                "rollout": rollout,
                "score": 0.0,
                "learn": seconds - rollout,
                "num_tokens": sum(map(len, texts)),
                "num_prompt_tokens": sum(map(len, prompts)),
                "num_teacher_tokens": int(inputs["attention_mask"].sum()),
                "writes_bare": False,
                "peak_mib": peak_mib(),
            }
        )


if __name__ == "__main__":
    main()
