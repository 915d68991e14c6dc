"""Talk about the demonstration: what only the teacher's prompt explains, and a reader of the bare prompt cannot follow.

Phrases are data (``mentions.jsonl``), by context template and language: ``asked`` is what a prompt may ask for that
explains a phrase; with ``opening`` one tells of the demonstration only before a text has said anything of its own. One
rule needs no list: a run of words of the template's own wording. What the prompt or the demonstration says itself may
be said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from onpolicy_sdft.types import Demonstration

_PHRASES = Path(__file__).with_name("mentions.jsonl")
#: Rows of phrases that may be said in any context.
_ANY = "any"
_NOT_A_WORD = re.compile(r"[\W_]+")
_WORD = re.compile(r"[\u3040-\u9fff\uac00-\ud7af]|[^\W_]+?(?=[\u3040-\u9fff\uac00-\ud7af]|[\W_]|$)|\n")
_SENTENCE_END = re.compile(r"[.!?:;,\n]+")
#: What a row marked as an opening is looked for behind: later, a text speaks of its own work.
_OPENING_WORDS = 8
#: What a prompt may show as well; then talk of it tells nothing.
_SHOWN = frozenset({"example", "demonstration", "sample", "reference", "guide"})
#: A run of the wording gives it away with so many words, of which so many are new. A word of a script without blanks
#: is one letter and counts half; short words are everywhere and do not count.
_RUN, _NEW_WORDS, _LETTERS = 3, 2.0, 5


class Mentions:
    """Finds talk about the demonstration.

    Args:
        phrases: Further phrases, found as text in any case.
        template: Name of the context template; some phrases tell of one only.
        wording: What the template itself says to the teacher, its sentences ended by punctuation.
    """

    def __init__(self, phrases: Sequence[str], template: str = "", wording: str = "") -> None:
        self.phrases = phrases
        self._rows = _rows(template)
        self._patterns = _patterns(template)
        self._wording: list[str] = []
        for sentence in _SENTENCE_END.split(wording.casefold()):
            self._wording += [*_words(sentence), "\n"]  # no run goes over the end of a sentence
        self._places: dict[str, list[int]] = {}
        for place, word in enumerate(self._wording):
            self._places.setdefault(word, []).append(place)

    def find(self, text: str, demonstration: Demonstration) -> str | None:
        """Return the first words that talk of the demonstration, or None."""
        said = [*(turn.content for turn in demonstration.turns), demonstration.shown]
        lowered, known = text.casefold(), "\n".join(said).casefold()
        for phrase in self.phrases:
            if phrase.casefold() in lowered and phrase.casefold() not in known:
                return phrase
        plain, known_plain = _plain(lowered), _plain(known)
        opening = len(" ".join(plain.split(" ", _OPENING_WORDS + 1)[: _OPENING_WORDS + 1]))
        asked = cache(lambda pattern: _is_asked(pattern, known))
        row_of = cache(lambda phrase: next(row for row in self._rows if re.fullmatch(row["phrase"], phrase)))
        for found in self._patterns.finditer(plain):
            row = row_of(found.group())
            if found.start() > opening and row.get("opening"):
                continue
            if not asked(row.get("asked", "")) and not _is_explained(found.group(), known_plain):
                return found.group()
        return self._wording_in(lowered, known)

    def _wording_in(self, text: str, known: str) -> str | None:
        """Return the first run of the template's wording in a text that nothing else explains."""
        old = set(_words(known))
        runs: dict[int, tuple[int, float]] = {}  # by place in the wording: words up to it, and how many are new
        for word in _words(text):
            weight = 0.0 if word in old else 0.5 if _is_letter(word) else float(len(word) >= _LETTERS)
            longer = {}
            for place in self._places.get(word, ()):
                num_words, new = runs.get(place - 1, (0, 0.0))
                longer[place] = (num_words + 1, new + weight)
                if num_words + 1 >= _RUN and new + weight >= _NEW_WORDS:
                    return " ".join(self._wording[place - num_words : place + 1])
            runs = longer
        return None


def _is_explained(phrase: str, known: str) -> bool:
    """Whether prompt or demonstration have a phrase ("in your own words": mine), or speak of an example themselves."""
    if phrase in known or re.sub(r"\bmy\b", "your", phrase) in known:
        return True
    return any(re.search(rf"\b{word}s?\b", known) for word in _SHOWN & set(phrase.split()))


def _is_asked(pattern: str, known: str) -> bool:
    """Whether the prompt asks for what a phrase tells of: a rewritten email, whether a solution is right."""
    return bool(pattern) and re.search(rf"(?<![a-zà-ÿ])(?:{pattern})", known) is not None


@cache
def _rows(template: str) -> Sequence[Mapping[str, Any]]:
    """Return the rows of phrases of a template; those of any first."""
    with _PHRASES.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["template"] in (_ANY, template)]


@cache
def _patterns(template: str) -> re.Pattern[str]:
    """Return the phrases of a template as one pattern over plain text; groups for each row would make it slow."""
    phrases = "|".join(row["phrase"] for row in _rows(template))
    return re.compile(rf"(?<![a-zà-ÿа-я])(?:{phrases})(?![a-zà-ÿа-я])")


def _plain(text: str) -> str:
    """Return lower-case words with one blank between them; apostrophes go."""
    return _NOT_A_WORD.sub(" ", re.sub("['’]", "", text))


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text) if word != "\n"]


def _is_letter(word: str) -> bool:
    return len(word) == 1 and word >= "\u3040"
