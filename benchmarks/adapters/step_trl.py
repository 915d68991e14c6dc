"""TRL's SFTTrainer, SDFTTrainer and SDPOTrainer in the step benchmark; see ``steps.py``. TRL must be importable:

    pip install --no-deps --target /tmp/trl trl==1.16.0
    PYTHONPATH=/tmp/trl python -m benchmarks.adapters.step_trl '{"trainer": "sdft", "model": DIR, "rows": [...], ...}'

The trainer runs its own ``train()``; a callback holds it between steps.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from benchmarks.adapters.steps import Channel, peak_mib
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.types import Demonstration, Turn


class Held(TrainerCallback):
    """Waits for each step to be asked for, and answers what it took."""

    def __init__(self, channel: Channel, settings: dict[str, Any]) -> None:
        self.channel, self.settings = channel, settings
        self.started = 0.0
        self.spent = {"rollout": 0.0, "score": 0.0}
        self.num_tokens = self.num_prompt_tokens = self.num_teacher_tokens = 0

    def timed(self, part: str, function: Callable[..., Any], *, without_gradient: bool = False) -> Callable[..., Any]:
        """Count the seconds of a function (those of its calls without gradient, if asked) as a part of the step."""

        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            if not (without_gradient and torch.is_grad_enabled()):
                self.spent[part] += time.perf_counter() - started
            return result

        return run

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait, then count from nothing."""
        if not self.channel.wait():
            raise SystemExit
        self.spent = dict.fromkeys(self.spent, 0.0)
        self.num_tokens = self.num_prompt_tokens = self.num_teacher_tokens = 0
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Answer."""
        seconds = time.perf_counter() - self.started
        self.channel.say(
            {
                "seconds": seconds,
                **self.spent,
                "learn": seconds - sum(self.spent.values()),
                "num_tokens": self.num_tokens,
                "num_prompt_tokens": self.num_prompt_tokens,
                "num_teacher_tokens": self.num_teacher_tokens,
                "writes_bare": not self.settings["options"].get("generate_from_teacher", False),
                "peak_mib": peak_mib(),
            }
        )


def common(settings: dict[str, Any], output: str) -> dict[str, Any]:
    """Return options of all trainers."""
    return {
        "output_dir": output, "per_device_train_batch_size": settings["rows_a_forward"],
        "gradient_accumulation_steps": settings["batch_size"] // settings["rows_a_forward"],
        "learning_rate": settings["lr"],
        "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "adam_beta2": 0.95, "num_train_epochs": 1,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
        "logging_strategy": "no", "disable_tqdm": True, "seed": 0,
    }  # fmt: skip


def sampled(settings: dict[str, Any]) -> dict[str, Any]:
    """Return options of the trainers that sample."""
    return {
        "num_generations": settings["num_samples"], "generation_batch_size": settings["batch_size"],
        "max_prompt_length": None, "max_completion_length": settings["max_new_tokens"], "temperature": 1.0, "top_k": 0,
        "top_p": 1.0, "shuffle_dataset": False, **settings["options"],
    }  # fmt: skip


def make_sft(settings: dict[str, Any], model: Any, tokenizer: Any, held: Held, output: str) -> Any:
    """Return an SFTTrainer on prompts and completions, the loss on completions only."""
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["response"]}],
        }
        for row in settings["rows"]
    ]
    args = SFTConfig(**common(settings, output), completion_only_loss=True, packing=False, max_length=None)
    trainer = SFTTrainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=LoraConfig(**settings["lora"]),
    )  # fmt: skip
    compute = trainer.compute_loss

    def counted(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        labelled, real = int((inputs["labels"] != -100).sum()), int(inputs["attention_mask"].sum())
        held.num_tokens += labelled
        held.num_prompt_tokens += real - labelled
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = counted
    return trainer


def make_sdft(settings: dict[str, Any], model: Any, tokenizer: Any, held: Held, output: str) -> Any:
    """Return an SDFTTrainer that divides over the whole vocabulary."""
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    rows = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "privileged_context": row["response"]}
        for row in settings["rows"]
    ]
    args = SDFTConfig(
        **common(settings, output), **sampled(settings), distillation_mode="full_logits", num_loss_tokens_to_skip=0,
        teacher_prompt_template=settings["teacher_prompt"],
    )  # fmt: skip
    trainer = SDFTTrainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=LoraConfig(**settings["lora"]),
    )  # fmt: skip
    return counting(trainer, held)


def make_sdpo(settings: dict[str, Any], model: Any, tokenizer: Any, held: Held, output: str) -> Any:
    """Return an SDPOTrainer with the task's check as the reward and a feedback made of the row's fields."""
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    task = load_task(**settings["task"])
    demonstrations = [
        Demonstration(str(index), (Turn("user", row["prompt"]),), row["response"], row["fields"])
        for index, row in enumerate(settings["rows"])
    ]

    def right(completions: Sequence[list[dict[str, str]]], index: Sequence[int], **_: Any) -> list[float]:
        texts = [turns[0]["content"] for turns in completions]
        return [float(task.check(text, demonstrations[i]).correct) for text, i in zip(texts, index, strict=True)]

    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "privileged_context": settings["feedback"].format(**row["fields"]),
            "index": index,
        }
        for index, row in enumerate(settings["rows"])
    ]
    args = SDPOConfig(**common(settings, output), **sampled(settings), include_environment_feedback=True)
    trainer = SDPOTrainer(
        model, held.timed("rollout", right), args=args, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=LoraConfig(**settings["lora"]),
    )  # fmt: skip
    return counting(trainer, held)


def counting(trainer: Any, held: Held) -> Any:
    """Have the parts of a trainer that samples timed, and its tokens counted."""
    trainer._generate = held.timed("rollout", trainer._generate)
    trainer._forward_logits = held.timed("score", trainer._forward_logits, without_gradient=True)
    prepare = trainer._prepare_training_batch

    def counted(inputs: Any) -> Any:
        batch = prepare(inputs)
        written = batch["completion_mask"]
        learned = written * batch.get("self_distillation_mask", torch.ones(1))[:, None]
        held.num_tokens += int(learned.sum())
        held.num_prompt_tokens += int(batch["prompt_mask"].sum())
        held.num_teacher_tokens += int(batch["teacher_attention_mask"].sum() - written.sum())
        return batch

    trainer._prepare_training_batch = counted
    return trainer


def main() -> None:
    channel, settings = Channel(), json.loads(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    held = Held(channel, settings)
    with tempfile.TemporaryDirectory() as output:
        make = {"sft": make_sft, "sdft": make_sdft, "sdpo": make_sdpo}[settings["trainer"]]
        trainer = make(settings, model, tokenizer, held, output)
        trainer.add_callback(held)  # the last one: the average of an averaged teacher belongs to the step
        channel.say({"ready": True, "num_parameters": sum(p.numel() for p in trainer.model.parameters())})
        trainer.train()


if __name__ == "__main__":
    main()
