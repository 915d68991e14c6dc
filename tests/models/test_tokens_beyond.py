"""A tokenizer that writes ids the embedding has no row for is refused before anything is trained."""

from __future__ import annotations

import pytest
from tiny import write_run

from onpolicy_sdft import fit, load_config
from onpolicy_sdft.errors import ModelError
from tests.conftest import make_model, make_tokenizer


def folder(path, vocab_size):
    make_model(vocab_size=vocab_size).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def test_it_is_refused_with_both_numbers_and_the_line_that_resizes(tmp_path):
    number = len(make_tokenizer())
    model = folder(tmp_path / "model", number - 1)
    config = load_config(write_run(tmp_path, model, **{"train.output_dir": tmp_path / "run"}))
    said = rf"1 tokens without a row.*'<\|im_end\|>'.*{number - 1} rows.*resize_token_embeddings\({number}\)"
    with pytest.raises(ModelError, match=said):
        fit(config, ["test"])
    assert not (tmp_path / "run").exists()


def test_an_embedding_that_just_fits_is_trained(tmp_path):
    model = folder(tmp_path / "model", len(make_tokenizer()))
    options = {"train.output_dir": tmp_path / "run", "train.max_steps": 1, "eval.before_and_after": False}
    fit(load_config(write_run(tmp_path, model, **options, **{"rollout.max_new_tokens": 4})), ["test"])
    assert (tmp_path / "run" / "model").is_dir()
