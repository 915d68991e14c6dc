"""A step that learns packed rows is the step that learns padded ones, whatever is minimised."""

from __future__ import annotations

import contextlib

import pytest
import torch

from onpolicy_sdft.build.method import learns_packed
from onpolicy_sdft.config.schema import RunConfig
from onpolicy_sdft.errors import ConfigError

STUDENT = {"sampling": {"prompt": "student"}}
METHODS = {
    "nll": {},
    "forward_kl": {"objective": {"name": "forward_kl"}},
    "reverse_kl, recorded": {"objective": {"name": "reverse_kl"}, "teacher": {"kind": "ema"}},
    "reverse_kl, scored": {"objective": {"name": "reverse_kl"}, **STUDENT},
    "jsd, kept tokens": {"objective": {"name": "jsd", "support": "student", "num_kept": 20}, **STUDENT},
    "sampled_reverse_kl": {"objective": {"name": "sampled_reverse_kl"}, **STUDENT},
    "anchor": {"objective": {"anchor_weight": 0.3}, "teacher": {"anchor": "base"}},
    "importance": {"objective": {"importance": True}},
    "demonstrations": {"targets": "demonstrations", "pairing": {"position_weights": (0.0, 2.0, 1.0)}},
    "demonstration beside": {"pairing": {"demonstration_weight": 0.3, "num_skipped": 1}},
}


@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.few(5)
def test_gradients_of_a_step_are_those_of_padded_rows(make_bench, method, lora):
    found = []
    for packed in (False, True):
        options = {**METHODS[method], "max_new_tokens": 12, "micro_batch_tokens": 150, "lora": lora}
        options["pairing"] = {**options.get("pairing", {}), "packed": packed}
        bench = make_bench(dtype=torch.float64, **options)
        found.append(bench.gradients())
    padded, packed = found
    assert padded.keys() == packed.keys()
    for name, gradient in padded.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_memory_that_runs_out_halves_packed_micro_batches_too(make_bench):
    plain, short = (make_bench(dtype=torch.float64, pairing={"packed": True}) for _ in range(2))
    expected = plain.step()
    policy, forward = short.trainer.policy, short.trainer.policy.forward

    def runs_out(batch, *rest):
        if len(batch.packed_lengths) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(batch, *rest)

    policy.forward = runs_out
    found = short.step()
    assert expected.values["train/num_micro_batches"] == 1
    assert found.values["train/num_halvings"] > 0
    for name in ("loss/total", "train/grad_norm"):
        assert found.values[name] == pytest.approx(expected.values[name], rel=1e-9)


def decide(model, layout):
    config = RunConfig()
    config.train.layout = layout
    return learns_packed(config, model, torch.device("cpu"), contextlib.nullcontext)


def test_a_model_that_can_is_packed_unless_it_is_asked_not_to_be(tiny_model, logged):
    assert decide(tiny_model(), "auto")
    assert decide(tiny_model(), "packed")
    assert not decide(tiny_model(), "padded")
    assert not logged


def test_a_model_that_cannot_pack_is_padded_and_said_or_refused_where_asked(tiny_model, logged):
    model = tiny_model()
    model.config.attention_dropout = 0.1
    assert not decide(model, "auto")
    assert logged == ["rows are padded to learn them: LlamaForCausalLM: its attention drops out while it learns"]
    with pytest.raises(ConfigError, match="--train.layout auto"):
        decide(model, "packed")
