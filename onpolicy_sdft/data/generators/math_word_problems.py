"""Grade-school word problems with worked solutions, from the ``gsm_symbolic`` set of reasoning-gym.

The splits share no template, so that a test problem is another story with other steps and not only
other numbers.

Contamination: the templates were made from questions of the GSM8K *test* split (the nearest GSM8K
question of each lies there, nearly always with more than half of its words in common). A model
trained on these rows has seen the structure of up to about a hundred of GSM8K's 1319 test
questions; after that, report held-out templates or another set, or leave the matching questions out
of GSM8K test.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from onpolicy_sdft.data.generators.common import (
    SPLITS,
    check_choice,
    check_options,
    keyed_random,
    select_indices,
)
from onpolicy_sdft.errors import MissingDependencyError

NAME = "math_word_problems"
TEMPLATE_SETS = ("all", "short")

# Numbers of reasoning-gym's templates. Within each half, in order of the length of the worked
# solutions, two of five templates are held out, so that the splits are equally hard.
SHORT: dict[str, tuple[int, ...]] = {
    "train": (
        26, 43, 10, 50, 31, 18, 39, 95, 59, 69, 78, 20, 57, 5, 91, 85, 47, 54, 55, 93, 51,
    ),
    "validation": (16, 6, 62, 14, 45, 44, 67),
    "test": (58, 72, 48, 56, 82, 34, 8),
}  # fmt: skip
LONG: dict[str, tuple[int, ...]] = {
    "train": (
        23, 30, 41, 28, 71, 88, 33, 64, 15, 12, 19, 81, 80, 29, 96, 68, 21, 92, 11, 17,
    ),
    "validation": (70, 22, 38, 7, 83, 0, 36),
    "test": (1, 9, 53, 42, 13, 73, 94),
}  # fmt: skip
# Left out although reasoning-gym offers them. A demonstration must not teach wrong arithmetic.
EXCLUDED: dict[str, tuple[int, ...]] = {
    "solutions that cut off decimals, e.g. 78 / 12 = 6": (2, 3, 4, 40, 49, 75, 99),
    "answers that can be negative ages": (24,),
    "numbers such as 0.3333333333333333, or 10÷2/5 for 10÷(2/5)": (46, 52, 60, 66),
    "a last line that states the answer in another form": (25, 27, 84, 89),
}

PER_TEMPLATE = {"all": 20, "short": 40}
SUFFIX = " Give the result as your final answer. Do not include units."


def generate(*, split: str, limit: int | None, seed: int, **options: Any) -> list[dict[str, Any]]:
    """Rows with a word problem and its worked solution.

    Args:
        split: ``train``, ``validation`` or ``test``.
        limit: Number of rows; None for all.
        seed: Chooses which rows come first; an id names the same row whatever the seed.
        options: ``templates``: ``all`` (default), or ``short``, the half with short solutions.

    Returns:
        Rows with ``id``, ``prompt``, ``response`` (ends in "The answer is N."), ``answer`` (the
        number as text) and ``template``.

    Raises:
        DataError: A bad split, limit, seed or option.
        MissingDependencyError: reasoning-gym is not installed.
    """
    check_choice(NAME, "split", split, SPLITS)
    check_options(NAME, options, ("templates",))
    templates = options.get("templates", "all")
    check_choice(NAME, "templates", templates, TEMPLATE_SETS)
    numbers = SHORT[split] if templates == "short" else SHORT[split] + LONG[split]
    places = [(number, nth) for number in numbers for nth in range(PER_TEMPLATE[templates])]
    order = select_indices(NAME, split=split, available=len(places), limit=limit, seed=seed)
    chosen = [places[index] for index in order]
    problems = {number: _problems(number) for number in sorted({number for number, _ in chosen})}
    return [{"id": f"{NAME}-{split}-t{number:02d}-{nth:04d}", **problems[number][nth]} for number, nth in chosen]


def _problems(template: int) -> list[dict[str, Any]]:
    """Problems of one template, all different."""
    try:
        # Here and not above: the import takes seconds, and only this task needs it.
        reasoning_gym = importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise MissingDependencyError(
            f"embedded:{NAME} needs the package reasoning-gym ({error}); install it with: pip install reasoning-gym"
        ) from error
    count = max(PER_TEMPLATE.values())
    size = 4 * count  # some templates repeat themselves
    # The set draws problem i from Random(seed + i); a seed of its own keeps templates apart.
    seed = keyed_random(NAME, template).randrange(2**31)
    source = reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=size)
    source.task_indices = [template] * size
    found: dict[str, dict[str, Any]] = {}
    for index in range(size):
        row = _row(source[index], template)
        if row is not None:
            found.setdefault(row["prompt"], row)
        if len(found) == count:
            break
    assert len(found) == count, (template, len(found))
    return list(found.values())


def _row(source: dict[str, Any], template: int) -> dict[str, Any] | None:
    """One problem as a row, or None when its answer is not a whole number."""
    answer = str(source["answer"])
    steps, _, stated = source["metadata"]["answer_cot"].strip().rpartition("####")
    if not re.fullmatch(r"-?\d+", answer) or stated.strip() != answer:
        return None
    return {
        "prompt": source["question"].removesuffix(SUFFIX),
        "response": f"{steps.strip()}\nThe answer is {answer}.",
        "answer": answer,
        "template": template,
    }
