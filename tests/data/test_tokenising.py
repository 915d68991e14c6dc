"""What is tokenised together, and in pieces, has the ids of the tokenizer called on each text by itself."""

from __future__ import annotations

from typing import Any

import chat_toys
import pytest

from onpolicy_sdft.config.schema import ContextConfig
from onpolicy_sdft.data.prepare import Prepared, prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.data.tokenising import TextIds
from onpolicy_sdft.types import Demonstration, Turn

TEXTS = ["Blue it is.", "x = [1, 2]\n\nprint(x)", "né 東京 🙂", "a  b", "\n- one\n- two.", "  lead", "tail \n"]


class OneByOne(TextIds):
    """The slow way."""

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def text(self, ids: Any) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def prepared(toy: chat_toys.Toy, tokenizer: str, **options: Any) -> Prepared:
    kwargs = {"student_template_kwargs": toy.kwargs, "teacher_template_kwargs": toy.kwargs}
    config = ContextConfig(date="2026-11-28", num_demonstrations=2, **kwargs, **options)
    rows = [
        Demonstration(f"{n}-{m}", (Turn("user", asked), Turn("assistant", "Yes."), Turn("user", said)), said)
        for n, asked in enumerate(TEXTS)
        for m, said in enumerate(TEXTS)
    ]
    rows += [Demonstration(f"spelled-{name}", (Turn("user", f"a{name}b"),), name) for name in toy.special]
    return prepare(rows, Renderer(chat_toys.make(toy, tokenizer), config), config, 0, on_bad_row="skip")


@pytest.mark.parametrize("options", [{}, {"show": "both", "max_teacher_tokens": 300, "on_too_long": "drop"}], ids=str)
@pytest.mark.parametrize("tokenizer", chat_toys.TOKENIZERS)
@pytest.mark.parametrize("name", chat_toys.TOYS)
@pytest.mark.few(20)
def test_rows_that_are_read_ahead_are_what_each_is_by_itself(name, tokenizer, options, monkeypatch):
    toy = chat_toys.TOYS[name]
    fast = prepared(toy, tokenizer, **options)
    monkeypatch.setattr("onpolicy_sdft.data.renderer.TextIds", OneByOne)
    slow = prepared(toy, tokenizer, **options)
    for part in ("pairs", "dropped_ids", "trimmed_ids", "bad_rows", "left_out", "digest"):
        assert getattr(fast, part) == getattr(slow, part)


def test_a_texts_ids_are_kept_as_objects_that_all_texts_share():
    ids = TextIds(chat_toys.make(chat_toys.TOYS["chatml"], "bytes"))
    one, other = ids.shared([1000, 2000]), ids.shared([int("2000"), int("1000")])
    assert one == (1000, 2000)
    assert one[0] is other[1]
    assert one[1] is other[0]


def test_what_conversations_have_in_common_is_tokenised_once(monkeypatch):
    toy = chat_toys.TOYS["chatml"]
    tokenizer = chat_toys.make(toy, "bytes")
    ids, asked = TextIds(tokenizer), []
    whole = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    ids.cut_at(["<|im_start|>", "<|im_end|>"], whole.format("?"))
    plain = TextIds._of
    monkeypatch.setattr(TextIds, "_of", lambda self, texts: asked.append(list(texts)) or plain(self, texts))
    with ids.ahead([whole.format("one"), whole.format("two")]):
        assert ids(whole.format("one")) == tokenizer(whole.format("one"), add_special_tokens=False)["input_ids"]
    (texts,) = asked
    assert len(texts) == len(set(texts)) == 4
    ids(whole.format("one"))
    assert len(asked) > 1, "nothing is held afterwards"


def test_a_token_that_takes_blanks_before_it_is_no_border():
    toy = chat_toys.TOYS["chatml"]
    tokenizer = chat_toys.make(toy, "bytes")
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken("<|left|>", special=True, lstrip=True, normalized=False)])
    ids = TextIds(tokenizer)
    ids.cut_at(["<|im_start|>", "<|left|>"], "a")
    text = "a  <|left|> b<|im_start|>  <|left|>"
    assert ids(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
