"""Text to token ids, many texts at once: the ids are those of the tokenizer called on each text by itself.

A conversation is tokenised in pieces that begin with a control token. Tokenizers cut a text at such tokens before they
do anything else, so the ids are the same; and what conversations have in common (a system message, the question of a
prompt and of its answer) is tokenised once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what tells a tokenizer from others: what it makes of any text, and of any token ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        # Calls leave their lengths in these two, which nothing here reads.
        said = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    else:  # in Python: its words, and its options besides the places of its files
        options = {name: str(value) for name, value in tokenizer.init_kwargs.items() if not _is_place(name)}
        said = {"vocabulary": tokenizer.get_vocab(), "options": options}
    named = [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.all_special_ids]
    return hashlib.sha256(json.dumps([said, named], sort_keys=True, default=str).encode()).hexdigest()


def _is_place(option: str) -> bool:
    return option.endswith("_file") or option == "name_or_path"


class TextIds:
    """Tokenises plain text and rendered conversations, without adding special tokens.

    Args:
        tokenizer: Whose ids these are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._borders: re.Pattern[str] | None = None
        self._backend: Tokenizer | None = None
        self._known: dict[str, list[int]] = {}  # ids of pieces that are read ahead
        self._cut: dict[str, list[str]] = {}  # texts that are read ahead, in pieces
        self._shared: list[int] = []  # every id, at its own place

    def cut_at(self, names: Iterable[str], tried: str) -> None:
        """Tokenise in pieces from now on, where this tokenizer allows it.

        Args:
            names: Tokens that pieces may begin with.
            tried: A text with them: pieces are taken where its ids come out the same.
        """
        self._borders, backend = _borders(self.tokenizer, names), getattr(self.tokenizer, "backend_tokenizer", None)
        is_plain = isinstance(backend, Tokenizer) and backend.truncation is None and backend.padding is None
        self._backend = backend if is_plain else None
        expected = self._of_tokenizer([tried])[0]
        said = self.tokenizer.decode(expected, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if self(tried) != expected or self.text(expected) != said:
            self._borders = self._backend = None

    def __call__(self, text: str) -> list[int]:
        """Tokenise one text."""
        ids: list[int] = []
        for piece in self._cut.get(text) or self._pieces(text):
            known = self._known.get(piece)
            ids += self._of([piece])[0] if known is None else known
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens among them, as it was written."""
        if self._backend is not None:
            return str(self._backend.decode(list(ids), skip_special_tokens=False))
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def shared(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return ids to be kept, as objects that all of them share: a third of the memory of a data set."""
        try:
            return tuple(map(self._shared.__getitem__, ids))
        except IndexError:
            self._shared.extend(range(len(self._shared), max(ids) + 1))
            return self.shared(ids)

    @contextlib.contextmanager
    def ahead(self, texts: Iterable[str]) -> Iterator[None]:
        """Tokenise texts together; inside, asking for one of them costs nothing."""
        cut = {text: self._pieces(text) for text in texts}
        pieces = dict.fromkeys(piece for parts in cut.values() for piece in parts if piece not in self._known)
        before = self._known, self._cut
        self._known = {**self._known, **dict(zip(pieces, self._of(list(pieces)), strict=True))}
        self._cut = {**self._cut, **cut}
        try:
            yield
        finally:
            self._known, self._cut = before

    def _pieces(self, text: str) -> list[str]:
        if self._borders is None:
            return [text]
        starts = [found.start() for found in self._borders.finditer(text)]
        ends = [*(start for start in starts if start), len(text)]
        return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _of(self, texts: Sequence[str]) -> list[list[int]]:
        if self._backend is None or not texts:
            return self._of_tokenizer(texts)
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [each.ids for each in found]

    def _of_tokenizer(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids


def _borders(tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> re.Pattern[str] | None:
    """Return where a tokenizer cuts a text before anything else: at special tokens that take nothing before them."""
    added = {token.content: token for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    kept = [
        name
        for name in names
        if (token := added.get(name)) is not None
        and token.special
        and not (token.lstrip or token.single_word or token.normalized)
        and not any(name in other for other in added if other != name)
    ]
    return re.compile("|".join(map(re.escape, sorted(kept, key=len, reverse=True)))) if kept else None
