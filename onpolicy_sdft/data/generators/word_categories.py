"""Which of four words is an animal or a color: questions a small chat model may well know.

Meant as a retention set. The splits share no word: each one has its own third of every category.
"""

from __future__ import annotations

from typing import Any

from onpolicy_sdft.data.generators.common import (
    SPLITS,
    check_choice,
    check_options,
    keyed_random,
    read_catalogue,
    select_indices,
)

NAME = "word_categories"
#: Words by category, the commonest ones.
WORDS = {row["category"]: tuple(row["words"]) for row in read_catalogue("word_categories")}
LABELS = ("A", "B", "C", "D")
ROUNDS = {"train": 10, "validation": 5, "test": 5}  # questions about each word

QUESTIONS = {
    "train": (
        "Which of these words names {article} {category}?",
        "One of the following is {article} {category}. Which one?",
        "Pick the word that stands for {article} {category}.",
    ),
    "validation": ("Which option is {article} {category}?",),
    "test": ("Which one of these is {article} {category}?",),
}
CLOSING = "Answer with the letter."


def generate(*, split: str, limit: int | None, seed: int, **options: Any) -> list[dict[str, Any]]:
    """Rows with a question and four words to choose from.

    Args:
        split: ``train``, ``validation`` or ``test``.
        limit: Number of rows; None for all.
        seed: Chooses which rows come first; an id names the same row whatever the seed.
        options: None are known.

    Returns:
        Rows with ``id``, ``prompt`` (options listed), ``response`` (letter and word), ``choices``,
        ``answer`` (the letter) and ``category``.

    Raises:
        DataError: A bad split, limit, seed or option.
    """
    check_choice(NAME, "split", split, SPLITS)
    check_options(NAME, options, ())
    words = {category: _part(category, split) for category in WORDS}
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for category, members in words.items():
        for round_ in range(ROUNDS[split]):
            for member in members:
                row = _row(words, category, member, split, round_)
                if row["prompt"] not in seen:
                    seen.add(row["prompt"])
                    rows.append({"id": f"{NAME}-{split}-{len(rows):04d}", **row})
    order = select_indices(NAME, split=split, available=len(rows), limit=limit, seed=seed)
    return [rows[index] for index in order]


def _part(category: str, split: str) -> tuple[str, ...]:
    """The split's own third of a category."""
    return WORDS[category][SPLITS.index(split) :: len(SPLITS)]


def _row(words: dict[str, tuple[str, ...]], category: str, member: str, split: str, round_: int) -> dict[str, Any]:
    rng = keyed_random(NAME, split, category, member, round_)
    others = rng.sample([name for name in words if name != category], len(LABELS) - 1)
    choices = [member, *(rng.choice(words[other]) for other in others)]
    rng.shuffle(choices)
    label = LABELS[choices.index(member)]
    article = "an" if category[0] in "aeiou" else "a"
    question = rng.choice(QUESTIONS[split]).format(article=article, category=category)
    listed = "\n".join(f"{name}. {word}" for name, word in zip(LABELS, choices, strict=True))
    return {
        "prompt": f"{question}\n{listed}\n{CLOSING}",
        "response": f"{label}. {member}",
        "choices": choices,
        "answer": label,
        "category": category,
    }
