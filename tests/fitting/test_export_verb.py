"""Whoever loads an export with plain transformers or PEFT gets the model that was scored."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from tiny import questions, say, write_run
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GenerationConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from onpolicy_sdft import fit, load_config, load_run
from onpolicy_sdft.cli.main import main
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.fitting import export as finished
from onpolicy_sdft.fitting.export import export
from onpolicy_sdft.models.load import load
from onpolicy_sdft.runs.files import read_jsonl
from tests.conftest import make_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.3, "bos_token_id": 256,
    "eos_token_id": 258, "pad_token_id": None,
}  # fmt: skip
MOE = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen2 tied": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
    "qwen3 moe": lambda: Qwen3MoeConfig(**SIZES, **MOE),
}
ATTENTION = {"gemma2": "eager"}  # others: the default of transformers
END, LEARNED = 258, 257  # <|endoftext|> is what the tokenizer and the generation config name; the template writes 257
IDS = torch.tensor([[1, 2, 3, 40, 50, 60, 70]])
PROMPTS = ["say one", "say two and three"]


def base(path: Path, family: str, dtype: torch.dtype = torch.float32, **generation: Any) -> Path:
    """A tiny model whose template ends turns with another token than its tokenizer names; it has no padding token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[family]()).to(dtype)
    model.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": END, **generation}))
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|im_end|>"]})
    tokenizer.pad_token = None
    tokenizer.save_pretrained(path)
    return path


def train(model: Path, name: str, **options: Any) -> Path:
    run = model.parent / name
    tiny = {
        "lora.alpha": 8, "rollout.max_new_tokens": 8, "optim.lr": 0.02, "optim.warmup_steps": 0, "train.batch_size": 3,
        "train.max_steps": 2, "eval.before_and_after": False,
    }  # fmt: skip
    files = run.resolve().with_name(f"{run.name}-files")  # a run directory may be the model's folder's parent
    files.mkdir()
    config = write_run(files, model, say("one", "two", "six"), **tiny)
    options = {"train.output_dir": str(run), **{key.replace("__", "."): value for key, value in options.items()}}
    fit(load_config(config, **options), ["sdft", "train"])
    return run


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS).logits.float()
    return found


@cache
def of_run(run: Path) -> tuple[torch.Tensor, list[str]]:
    """The logits and the greedy texts of a finished run, which is loaded once for all of its exports."""
    own = load_run(run)
    return logits(own.model), own.sample(PROMPTS, max_new_tokens=12)


def assert_is(model: Any, run: Path, folder: Path, tolerance: float = 1e-4) -> None:
    """The model gives the run's own logits, and with the folder's generation config the run's own greedy texts."""
    own, texts = of_run(run)
    torch.testing.assert_close(logits(model), own, atol=tolerance, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    assert set(model.generation_config.eos_token_id) == {END, LEARNED}
    for prompt, text in zip(PROMPTS, texts, strict=True):
        turns = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=LEARNED)
        assert tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == text


CASES = [
    ("llama", "all-linear"),
    ("llama", ["q_proj", "embed_tokens"]),
    ("qwen2 tied", "all-linear"),
    pytest.param("qwen2 tied", ["v_proj", "down_proj"], marks=pytest.mark.slow),
    ("gemma2", "all-linear"),
    ("qwen3 moe", "all-linear"),
    ("qwen3 moe", ["q_proj", "gate_proj", "up_proj"]),
]


@pytest.mark.parametrize(("family", "targets"), CASES)
@pytest.mark.few(1)
def test_an_adapter_and_its_merged_export_are_the_model_that_was_trained(tmp_path, family, targets):
    model = base(tmp_path / "base", family)
    run = train(model, "run", lora__target_modules=targets)
    asked = {"attn_implementation": ATTENTION.get(family)}
    assert_is(AutoPeftModelForCausalLM.from_pretrained(run / "model", **asked), run, run / "model")
    plain = tmp_path / "plain"
    export(run, plain, merged=True, push_to_hub=None)
    assert_is(AutoModelForCausalLM.from_pretrained(plain, **asked), run, plain)
    assert not torch.allclose(of_run(run)[0], logits(AutoModelForCausalLM.from_pretrained(model)), atol=0.1)


@pytest.mark.slow
def test_a_scale_that_does_not_shrink_with_the_rank_is_in_the_export(tmp_path):
    model = base(tmp_path / "base", "llama")
    run = train(model, "run", lora__use_rslora=True)
    assert json.loads((run / "model" / "adapter_config.json").read_text())["use_rslora"]
    assert_is(AutoPeftModelForCausalLM.from_pretrained(run / "model"), run, run / "model")
    export(run, tmp_path / "plain", merged=True, push_to_hub=None)
    assert_is(AutoModelForCausalLM.from_pretrained(tmp_path / "plain"), run, tmp_path / "plain")
    plain = train(model, "other")
    assert not torch.allclose(of_run(run)[0], logits(load_run(plain).model), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.few(1)
def test_a_full_export_is_the_model_that_was_trained(tmp_path, family):
    run = train(base(tmp_path / "base", family), "run", lora__enabled=False, optim__lr=1e-3)
    assert f"* attention: {ATTENTION.get(family, 'sdpa')}\n" in (run / "model" / "README.md").read_text()
    plain = AutoModelForCausalLM.from_pretrained(run / "model", attn_implementation=ATTENTION.get(family))
    assert_is(plain, run, run / "model")


def tokenizer_of(folder: Path) -> dict[str, Any]:
    """All that a tokenizer says of itself, but where it was loaded from."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {key: value for key, value in tokenizer.init_kwargs.items() if "file" not in key and "name" not in key}
    return {
        "class": type(tokenizer), "options": options, "named": tokenizer.special_tokens_map,
        "template": tokenizer.chat_template, "added": tokenizer.added_tokens_decoder,
        "backend": json.loads(tokenizer.backend_tokenizer.to_str()), "length": tokenizer.model_max_length,
        "side": (tokenizer.padding_side, tokenizer.truncation_side),
    }  # fmt: skip


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.few(1)
def test_every_export_has_the_tokenizer_as_it_came(tmp_path, lora):
    model = base(tmp_path / "base", "llama")
    words = questions(tmp_path / "run-files", "w")
    best = {"eval__validation": [words], "eval__every_steps": 1, "eval__best_metric": "eval/w/score"}
    run = train(model, "run", lora__enabled=lora, **best)
    folders = [path.parent for path in run.rglob("tokenizer_config.json")]
    assert {folder.name for folder in folders} == {"model", "best"}
    export(run, tmp_path / "plain", merged=lora, push_to_hub=None)
    came = tokenizer_of(model)
    assert "pad_token" not in came["named"]
    for folder in (*folders, tmp_path / "plain"):
        assert tokenizer_of(folder) == came, folder


def test_the_best_weights_and_what_is_pushed_stop_where_the_run_stops(tmp_path, monkeypatch):
    model = base(tmp_path / "base", "llama")
    words = questions(tmp_path / "run-files", "w")
    run = train(
        model, "run", eval__validation=[words], eval__every_steps=1, eval__best_metric="eval/w/score",
        lora__enabled=False,
    )  # fmt: skip
    pushed = {}

    def push(folder: Path, name: str, **options: object) -> None:
        pushed[name] = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        assert "stop tokens" in (folder / "README.md").read_text()

    monkeypatch.setattr(finished, "push_folder", push)
    export(run, None, merged=False, push_to_hub="me/mine")
    best = next(path.parent for path in run.rglob("generation_config.json") if "best" in path.parts)
    assert set(GenerationConfig.from_pretrained(best).eos_token_id) == set(pushed["me/mine"]) == {END, LEARNED}


def test_an_adapter_on_a_folder_is_not_pushed_alone(tmp_path):
    run = train(base(tmp_path / "base", "llama"), "run", train__max_steps=1)
    with pytest.raises(ConfigError, match="--merged"):
        export(run, None, merged=False, push_to_hub="me/mine")


IDLE: list[dict[str, Any]] = [
    {"do_sample": False, "temperature": 0.6, "top_k": 20},
    {"do_sample": False, "typical_p": 0.5, "num_beams": 1, "length_penalty": 2.0},
    {"pad_token_id": -1, "output_scores": True},
]


@pytest.mark.parametrize(
    ("idle", "lora"),
    [  # transformers saves the config of a whole model; that of an adapter is saved in one place, whatever is in it
        *((idle, False) for idle in IDLE),
        (IDLE[0], True),
        *(pytest.param(idle, True, marks=pytest.mark.slow) for idle in IDLE[1:]),
    ],
)
@pytest.mark.few(1)
def test_a_generation_config_that_cannot_be_saved_costs_no_model(tmp_path, idle, lora, logged):
    run = train(base(tmp_path / "base", "llama", **idle), "run", train__max_steps=1, lora__enabled=lora)
    assert set(GenerationConfig.from_pretrained(run / "model").eos_token_id) == {END, LEARNED}
    assert any("generation config" in line for line in logged)


def test_what_cannot_be_saved_is_refused_before_the_first_step(tmp_path, monkeypatch):
    model = base(tmp_path / "base", "llama")

    def explode(self: Any, *_: Any, **__: Any) -> None:
        raise OSError("no such template")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", explode)
    with pytest.raises(Exception, match="could not be saved after training"):
        train(model, "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(("asked", "found"), [(None, torch.bfloat16), ("float32", torch.float32)])
@pytest.mark.few(1)
def test_a_merged_export_has_the_dtype_of_the_bases_files_unless_asked(tmp_path, asked, found, logged):
    run = train(base(tmp_path / "base", "llama", torch.bfloat16), "run")
    logged.clear()
    plain = tmp_path / "plain"
    export(run, plain, merged=True, push_to_hub=None, dtype=asked)
    weights = load_file(plain / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {found} == {AutoConfig.from_pretrained(plain).dtype}
    assert any(str(found).removeprefix("torch.") in line for line in logged)
    assert_is(AutoModelForCausalLM.from_pretrained(plain).float(), run, plain, 0.5 if asked is None else 1e-4)


def test_a_full_run_says_which_dtype_it_is_exported_in_and_another_can_be_asked_for(tmp_path, logged):
    run = train(base(tmp_path / "base", "llama", torch.bfloat16), "run", lora__enabled=False, train__max_steps=1)
    assert AutoConfig.from_pretrained(run / "model").dtype == torch.float32
    assert any("files are bfloat16; it is trained and exported in float32" in line for line in logged)
    export(run, tmp_path / "half", merged=False, push_to_hub=None, dtype="bfloat16")
    assert {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    assert "dtype: bfloat16, as asked" in (tmp_path / "half" / "README.md").read_text()


def test_the_dtype_of_an_adapter_is_not_asked_for(tmp_path, capsys):
    run = train(base(tmp_path / "base", "llama"), "run", train__max_steps=1)
    assert main(["export", str(run), "--output", str(tmp_path / "x"), "--dtype", "bfloat16"]) != 0
    assert "--merged" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_an_exported_adapter_exports_the_same_model_however_it_is_loaded(tmp_path):
    model = base(tmp_path / "base", "llama")
    first = train(model, "first")
    second = train(first / "model", "../second", train__output_dir=str(tmp_path / "second"))
    third = train(second / "model", "../third", train__output_dir=str(tmp_path / "third"))
    for run in (second, third):
        assert_is(AutoPeftModelForCausalLM.from_pretrained(run / "model"), run, run / "model")
        plain = tmp_path / f"{run.name}-plain"
        export(run, plain, merged=True, push_to_hub=None)
        assert_is(AutoModelForCausalLM.from_pretrained(plain), run, plain)
    own = of_run(third)[0]
    torch.testing.assert_close(logits(load(load_config(**{"model.name": str(third / "model")}).model).model), own)
    assert not torch.allclose(own, logits(load_run(first).model), atol=0.1)


@pytest.mark.slow
def test_an_adapter_whose_base_is_an_adapter_is_loaded_with_both(tmp_path):
    """As an earlier version exported it: the second names the first's folder as its base."""
    model = base(tmp_path / "base", "llama")
    first = train(model, "first")
    second = train(first / "model", "../second", train__output_dir=str(tmp_path / "second"))
    own = logits(load_run(second).model)
    path = second / "model" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(first / "model")}))
    loaded = load(load_config(**{"model.name": str(second / "model")}).model)
    torch.testing.assert_close(logits(loaded.model), own, atol=1e-4, rtol=0)
    shutil.rmtree(second / "base")  # it made no base of its own
    torch.testing.assert_close(logits(load_run(second).model), own, atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="an adapter itself"):
        export(second, tmp_path / "alone", merged=False, push_to_hub=None)


def test_the_models_own_dropout_is_in_the_export_though_it_is_off_while_it_learns(tmp_path):
    model = base(tmp_path / "base", "llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.25}))
    run = train(model, "run", lora__enabled=False, train__max_steps=1)
    assert AutoConfig.from_pretrained(run / "model").attention_dropout == 0.25


def test_steps_that_change_nothing_have_the_same_loss_though_the_base_drops_out(tmp_path):
    model = base(tmp_path / "base", "llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))
    run = train(model, "run", train__targets="demonstrations", optim__lr=1e-12, train__max_steps=3)
    losses = [row["values"]["loss/total"] for row in read_jsonl(run / "metrics.jsonl")]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)  # dropout would show in the first digits
