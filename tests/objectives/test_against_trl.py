"""Our ``forward_kl`` against TRL's SDFTTrainer on the same rollouts; skipped where TRL 1.16 is not installed.

    pip install --no-deps --target /tmp/trl trl==1.16.0
    PYTHONPATH=/tmp/trl pytest tests/objectives/test_against_trl.py

TRL averages the token means of its rows, we take one sum over tokens, so each token is given the weight it has there.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from onpolicy_sdft.data.collate import collate
from onpolicy_sdft.models.policy import Policy
from onpolicy_sdft.models.weights import PolicyWeights
from onpolicy_sdft.objectives.objective import Objective
from onpolicy_sdft.train.teacher_scorer import TeacherScorer
from onpolicy_sdft.types import TrainingRow

pytest.importorskip("trl", reason="TRL is not installed")

PAD = 257
#: Bare prompt, prompt with the demonstration, completion: as token ids, of different lengths.
ROWS = [
    (tuple(range(1, 8)), tuple(range(1, 30)), (40, 41, 42, PAD)),
    (tuple(range(3, 20)), tuple(range(3, 60)), tuple(range(60, 77))),
    (tuple(range(9, 12)), tuple(range(9, 44)), (7, PAD)),
]


@pytest.fixture
def trl_trainer(tokenizer, tiny_model, tmp_path: Path):
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    args = SDFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=3, num_generations=1, generation_batch_size=3,
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", generate_from_teacher=True,
        teacher_model_kind="live", distillation_mode="full_logits", distillation_alpha=0.0, temperature=1.0,
        num_loss_tokens_to_skip=0,
    )  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": f"q{i}"}], "privileged_context": "a"} for i in range(3)]
    return SDFTTrainer(tiny_model(), args, Dataset.from_list(rows), processing_class=tokenizer)


def padded(rows, side):
    longest = max(map(len, rows))
    fill = [[PAD] * (longest - len(row)) for row in rows]
    mask = [[0] * len(gap) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(gap)
            for gap, row in zip(fill, rows, strict=True)]  # fmt: skip
    ids = [gap + list(row) if side == "left" else list(row) + gap for gap, row in zip(fill, rows, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def test_forward_kl_is_trls_full_logit_loss_with_a_live_teacher(trl_trainer):
    bare, shown, completions = zip(*ROWS, strict=True)
    prompt_ids, prompt_mask = padded(bare, "left")
    teacher_ids, teacher_mask = padded(shown, "left")
    completion_ids, completion_mask = padded(completions, "right")
    batch = {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask,
        "completion_ids": completion_ids, "completion_mask": completion_mask,
        "teacher_input_ids": torch.cat([teacher_ids, completion_ids], 1),
        "teacher_attention_mask": torch.cat([teacher_mask, completion_mask], 1),
    }  # fmt: skip
    model = trl_trainer.model
    model.train()
    trl_trainer.current_gradient_accumulation_steps = 1
    theirs = trl_trainer.compute_loss(model, batch)
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    objective = Objective("forward_kl", chunk_tokens=5)
    ours_batch = collate([TrainingRow(b, c, s) for b, s, c in ROWS], PAD)
    (signals,) = TeacherScorer(PolicyWeights(model), "live", None, objective, PAD)([ours_batch])
    weights = [1 / (len(ROWS) * len(completion)) for completion in completions for _ in completion]
    ours, _ = Policy(model)(ours_batch, objective, dataclasses.replace(signals, weights_N=torch.tensor(weights)))
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-4, msg=name)
