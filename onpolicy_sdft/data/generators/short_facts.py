"""Short questions of general knowledge that a small chat model may well know.

Meant as a retention set: right answers that are lost are facts forgotten. The splits share no fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onpolicy_sdft.data.generators.common import (
    SPLITS,
    check_choice,
    check_options,
    keyed_random,
    read_catalogue,
    select_indices,
)

NAME = "short_facts"
# Whose the facts of a kind are, in turn: test asks for half of them, the best known one included.
TURNS = ("test", "train", "test", "validation")
WORDINGS = {"train": 4, "validation": 2, "test": 1}  # questions about each fact


@dataclass(frozen=True)
class Kind:
    """Facts that are asked for in the same words, the best known ones first: a row of ``catalogues/short_facts.jsonl``.

    No month's answer is May: as a word of a sentence ("it may be") it would be found by chance.

    Attributes:
        questions: Wordings; ``{0}`` is the subject, or with ``{1}`` the parts of it around a ``|``.
        response: The answer as a sentence, with ``{answer}``.
        facts: Answer by subject; what else is accepted follows it, each after a ``|``.
    """

    questions: tuple[str, ...]
    response: str
    facts: Mapping[str, str]


KINDS = {
    row["kind"]: Kind(tuple(row["questions"]), row["response"], row["facts"]) for row in read_catalogue("short_facts")
}


def generate(*, split: str, limit: int | None, seed: int, **options: Any) -> list[dict[str, Any]]:
    """Rows with a question and its short answer, to be checked by ``exact`` with ``match: contains``.

    Args:
        split: ``train``, ``validation`` or ``test``.
        limit: Number of rows; None for all.
        seed: Chooses which rows come first; an id names the same row whatever the seed.
        options: None are known.

    Returns:
        Rows with ``id``, ``prompt``, ``response`` (a sentence), ``answer`` (its word or number),
        ``aliases`` (what else is accepted) and ``kind``.

    Raises:
        DataError: A bad split, limit, seed or option.
    """
    check_choice(NAME, "split", split, SPLITS)
    check_options(NAME, options, ())
    rows = [row for kind in KINDS for subject in _part(kind, split) for row in _rows(kind, subject, split)]
    order = select_indices(NAME, split=split, available=len(rows), limit=limit, seed=seed)
    return [{"id": f"{NAME}-{split}-{index:04d}", **rows[index]} for index in order]


def _part(kind: str, split: str) -> list[str]:
    """The subjects of a kind that are the split's own."""
    return [subject for i, subject in enumerate(KINDS[kind].facts) if TURNS[i % len(TURNS)] == split]


def _rows(kind: str, subject: str, split: str) -> list[dict[str, Any]]:
    """One fact in as many wordings as the split uses."""
    facts = KINDS[kind]
    parts = subject.split("|")
    answer, *aliases = facts.facts[subject].split("|")
    response = facts.response.format(*parts, answer=answer)
    questions = keyed_random(NAME, kind, subject).sample(facts.questions, WORDINGS[split])
    return [
        {
            "prompt": question.format(*parts),
            "response": response[0].upper() + response[1:],
            "answer": answer,
            "aliases": list(aliases),
            "kind": kind,
        }
        for question in questions
    ]
