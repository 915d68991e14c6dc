"""Every backend with two ranks gives what one process gives: tokens, losses, gradients, checkpoints, exports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from harness import AVERAGED, figures, job, run_all, tokens, weights, write_config
from peft import PeftModel
from transformers import AutoModelForCausalLM

from onpolicy_sdft.runs.files import read_json

BACKENDS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
SLOW = pytest.mark.slow
METHODS = {
    "lora": {
        "optim.schedule": "cosine",
        "optim.warmup_steps": 1,
        "optim.weight_decay": 0.1,
        "objective.name": "forward_kl",
        "model.gradient_checkpointing": True,
    },
    "full": {"lora.enabled": False, "optim.lr": 0.003, "eval.before_and_after": False, **AVERAGED},
}
QUICK = (("ddp", "lora"), ("zero3", "full"), ("fsdp2", "lora"))
PAIRS = [
    pytest.param(backend, method, marks=() if (backend, method) in QUICK else SLOW)
    for backend in BACKENDS
    for method in METHODS
]
UNSCORED = {"eval.before_and_after": False}
METRICS = ("loss/total", "train/grad_norm", "train/num_loss_tokens")


class Runs:
    """Runs that several tests look at, made when the first one asks."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.config = write_config(folder, model)
        self.made: set[str] = set()

    def get(self, kind: str, what: str) -> Path:
        """Return the directory of a backend's run: ``lora``, ``full`` or ``resumed``; kind ``one``: of one process."""
        output = self.folder / f"{kind}-{what}"
        if what == "resumed":
            return self.moved(output, (kind, 2, 3), (kind, 2, 5))
        ranks, backend = (1, "ddp") if kind == "one" else (2, kind)
        return self._made(output, job(ranks, self.config, output, backend=backend, **METHODS[what]))

    def moved(self, output: Path, *parts: tuple[str, int, int]) -> Path:
        """Return the directory of a run that goes on part by part: backend, ranks, and the step it goes on to."""
        options = {**METHODS["full"], **UNSCORED, "train.resume": "auto"}
        jobs = [
            job(ranks, self.config, output, backend=backend, **options, **{"train.max_steps": steps})
            for backend, ranks, steps in parts
        ]
        return self._made(output, *jobs)

    def _made(self, output: Path, *jobs: object) -> Path:
        if output.name not in self.made:
            done = run_all(*jobs)
            assert done.returncode == 0, done.stderr[-3000:]
            self.made.add(output.name)
        return output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Runs:
    pytest.importorskip("deepspeed")
    return Runs(tmp_path_factory.mktemp("backends"), model_dir)


@pytest.mark.parametrize(("backend", "method"), PAIRS)
def test_two_ranks_write_the_tokens_and_take_the_steps_of_one_process(runs, backend, method):
    one, two = runs.get("one", method), runs.get(backend, method)
    assert tokens(one) == tokens(two)
    torch.testing.assert_close(figures(one, *METRICS), figures(two, *METRICS), rtol=1e-5, atol=1e-6)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-3, atol=5e-5)
    if method == "full":
        return
    scores = [read_json(each / "eval" / "summary.json") for each in (one, two)]
    for stage in ("before", "after"):
        assert scores[0][stage]["sets"][0]["score"] == scores[1][stage]["sets"][0]["score"]
        assert scores[0][stage]["sets"][0]["n"] == scores[1][stage]["sets"][0]["n"] == 7
    assert scores[0]["after"]["kl"]["mean"] == pytest.approx(scores[1]["after"]["kl"]["mean"], rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS[1:])  # test_ddp.py does it for DDP
@pytest.mark.few(1)
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(runs, backend):
    whole, resumed = runs.get(backend, "full"), runs.get(backend, "resumed")
    assert torch.equal(figures(whole, *METRICS), figures(resumed, *METRICS))
    first, second = weights(whole), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("backend", "lora"),
    [("zero3", True), *(pytest.param(*each, marks=SLOW) for each in
     (("zero3", False), ("fsdp2", True), ("fsdp2", False), ("ddp", True)))],
)  # fmt: skip
def test_a_layer_that_no_gradient_reaches_is_refused_before_weights_are_divided(tmp_path, model_dir, backend, lora):
    refused = {"detached": "layers.1.self_attn.v_proj"}
    asked = job(
        2, write_config(tmp_path, model_dir), tmp_path / "run", backend=backend, more=refused, **{"lora.enabled": lora}
    )
    done = run_all(asked)
    assert done.returncode == 2
    assert re.search(r"rank \d: .* get no gradient from the loss .*layers\.1\.self_attn\.v_proj.* Fix: ", done.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_bfloat16_base_is_divided_too_and_its_adapters_stay_float32(tmp_path, model_dir):
    config = write_config(tmp_path, model_dir)
    narrow = {"model.dtype": "bfloat16", "train.precision": "bf16", **UNSCORED}
    kinds = (("ddp", 1), ("zero2", 2), ("zero3", 2))
    done = run_all(*(job(ranks, config, tmp_path / backend, backend=backend, **narrow) for backend, ranks in kinds))
    assert done.returncode == 0, done.stderr[-3000:]
    for backend in ("zero2", "zero3"):
        assert all(value.dtype == torch.float32 for value in weights(tmp_path / backend).values())
        one, two = (figures(tmp_path / each, "loss/total") for each in ("ddp", backend))
        torch.testing.assert_close(one, two, rtol=0.05, atol=0.05)


def test_a_run_moves_between_backends_and_numbers_of_ranks(runs):
    """ZeRO-3 on two ranks, then one process, then FSDP2 on two."""
    one = runs.get("one", "full")
    moved = runs.moved(runs.folder / "moved", ("zero3", 2, 2), ("ddp", 1, 3), ("fsdp2", 2, 5))
    torch.testing.assert_close(figures(one, *METRICS), figures(moved, *METRICS), rtol=1e-5, atol=1e-6)
    assert tokens(one) == tokens(moved)


@pytest.mark.parametrize(("backend", "method"), PAIRS)
def test_an_export_loads_in_plain_transformers_and_gives_the_same_logits(runs, model_dir, backend, method):
    ids = torch.tensor([[5, 6, 7, 8]])

    def logits(kind: str) -> torch.Tensor:
        export = runs.get(kind, method) / "model"
        model = AutoModelForCausalLM.from_pretrained(model_dir if method == "lora" else export)
        model = PeftModel.from_pretrained(model, export) if method == "lora" else model
        with torch.no_grad():
            return model(input_ids=ids).logits

    torch.testing.assert_close(logits(backend), logits("one"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("backend", "method"), [("zero3", "full"), pytest.param("fsdp2", "lora", marks=SLOW)])
def test_weights_are_gathered_once_a_step_and_decoding_calls_no_collective(tmp_path, model_dir, backend, method):
    options = {**METHODS[method], **UNSCORED, "train.max_steps": 2}
    asked = job(
        2, write_config(tmp_path, model_dir), tmp_path / "run", backend=backend, more={"count_collectives": True},
        **options,
    )  # fmt: skip
    done = run_all(asked)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("rank ")]
    assert {int(words[-1]) for words in lines if "wrote" in words} == {0}
    gathered = [int(words[-1]) for words in lines if "gathered" in words and words[1] == "0"]
    assert all(0 < count <= 2 * 48 for count in gathered), "one a parameter, which FSDP2 calls through another"
    # The first step writes with what was gathered at the start, and the export reads once more. In the full method an
    # average and the seed score.
    assert len(gathered) == {"full": 2 * 3 + 1, "lora": 3}[method]


SHARDED = {
    "rollout.weights": "sharded", "rollout.backend": "hf", "rollout.batch_size": 2, "eval.kl_prompts": 0,
    "eval.batch_size": 3,
}  # fmt: skip


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("backend", ["zero3", "fsdp2"])
@pytest.mark.few(1)
def test_without_a_whole_copy_ranks_write_together_and_the_same(tmp_path, model_dir, backend, lora):
    """Uneven texts, an uneven number of batches (3 and 2 requests, two at a time), evaluation and export."""
    config = write_config(tmp_path, model_dir)
    options = {"lora.enabled": lora, "optim.lr": 0.003, "eval.kl_prompts": 0, "train.max_steps": 3}
    done = run_all(
        job(1, config, tmp_path / "one", **options),
        job(2, config, tmp_path / "two", backend=backend, **{**options, **SHARDED}),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = tmp_path / "one", tmp_path / "two"
    assert tokens(one) == tokens(two)
    torch.testing.assert_close(figures(one, *METRICS), figures(two, *METRICS), rtol=1e-5, atol=1e-6)
    ids, logits = torch.tensor([[5, 6, 7, 8]]), []
    for each in (one, two):
        model = AutoModelForCausalLM.from_pretrained(model_dir if lora else each / "model")
        model = PeftModel.from_pretrained(model, each / "model") if lora else model
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", ["ddp", "fsdp2", *(pytest.param(each, marks=SLOW) for each in BACKENDS[1:4])])
def test_a_checkpoint_of_adapters_holds_no_frozen_weight(runs, backend):
    assert all("lora_" in name for name in weights(runs.get(backend, "lora")))
