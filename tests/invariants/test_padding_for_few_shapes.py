"""Padding that makes shapes few changes neither gradients nor tokens, and reads nothing real."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.invariants.test_packed_step import METHODS

ROUNDING = {
    "round_tokens": ("data.collate", "models.packed", "rollout.call", "rollout.hf", "rollout.rescoring"),
    "round_rows": ("data.collate", "rollout.call", "rollout.rescoring"),
    "_decode_rows": ("rollout.call",),
    "pad_rows": ("models.policy", "objectives.objective", "rollout.call"),
}


def without_padding(monkeypatch):
    """Let every forward have the shape of what it reads."""
    for name, modules in ROUNDING.items():
        for module in modules:
            monkeypatch.setattr(f"onpolicy_sdft.{module}.{name}", lambda x, *bound, **options: x)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.few(5)
def test_gradients_of_a_step_are_those_of_ragged_forwards(make_bench, monkeypatch, method, packed):
    options = {**METHODS[method], "max_new_tokens": 12, "micro_batch_tokens": 150, "chunk_tokens": 7}
    options["pairing"] = {**options.get("pairing", {}), "packed": packed}
    rounded = make_bench(dtype=torch.float64, **options).gradients()
    without_padding(monkeypatch)
    ragged = make_bench(dtype=torch.float64, **options).gradients()
    assert rounded.keys() == ragged.keys()
    for name, gradient in ragged.items():
        torch.testing.assert_close(rounded[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("rollouts", ["engine", "hf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_writes_and_counts_what_ragged_forwards_do(make_bench, monkeypatch, rollouts, dtype):
    found = []
    for _ in range(2):
        bench = make_bench(dtype=dtype, rollouts=rollouts, max_new_tokens=12)
        found.append(bench.step())
        without_padding(monkeypatch)
    rounded, ragged = found
    assert [target.token_ids for target in rounded.targets] == [target.token_ids for target in ragged.targets]
    for name in ("train/num_loss_tokens", "train/total_loss_tokens", "rollout/mean_length"):
        assert rounded.values[name] == ragged.values[name]
    for name in ("loss/total", "train/grad_norm", "rollout/logprob", "rollout/entropy"):
        assert rounded.values[name] == pytest.approx(ragged.values[name], rel=1e-4)
    assert rounded.values["train/padding_rate"] > 0
    if rollouts == "engine":
        assert rounded.values["rollout/padding_rate"] > 0
        assert ragged.values["rollout/padding_rate"] == 0


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_what_stands_in_padding_changes_no_bit_of_a_gradient(make_bench, packed):
    found = []
    for pad_token_id in (0, 77):
        bench = make_bench(max_new_tokens=12, pairing={"packed": packed})
        bench.trainer.pairing = replace(bench.trainer.pairing, pad_token_id=pad_token_id)
        found.append(bench.gradients())
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name
