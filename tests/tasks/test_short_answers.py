"""exact, multiple_choice and free_form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from onpolicy_sdft.errors import DataError, TaskError
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.multiple_choice import chosen_label
from onpolicy_sdft.types import Demonstration, Turn

CITIES = ["Paris", "London", "New York", "York"]
CHOICE = load_task("multiple_choice", {})


def demonstration(response: str, prompt: str = "Which?", **fields: object) -> Demonstration:
    return Demonstration("row-1", (Turn("user", prompt),), response, fields)


def list_choices(question: str, choices: list[str]) -> str:
    return "\n".join([question, "", *(f"{label}. {text}" for label, text in zip("ABCDEF", choices, strict=False))])


@pytest.mark.parametrize(
    ("completion", "options", "correct"),
    [
        ("New York", {}, True),
        ("  new \n york ", {}, True),
        ("new york", {"ignore_case": False}, False),
        ("New  York", {"ignore_whitespace": False}, False),
        (" New York\n", {"ignore_whitespace": False, "ignore_case": False}, True),
        ("New York.", {}, False),
        ("", {}, False),
    ],
)
def test_exact_compares_normalised_text(completion: str, options: dict[str, bool], correct: bool) -> None:
    task = load_task("exact", options)
    assert task.check(completion, demonstration("New York")).correct is correct


def test_exact_prefers_the_answer_field_and_its_reference_passes() -> None:
    task = load_task("exact", {})
    row = demonstration("It is four.", answer=4)
    task.check_demonstration(row)
    assert task.check(task.reference_answer(row), row).correct
    assert not task.check("It is four.", row).correct


def test_exact_reads_composed_and_decomposed_letters_alike() -> None:
    assert load_task("exact", {}).check("cafe\u0301", demonstration("caf\u00e9")).correct


def test_exact_refuses_an_empty_reference_and_never_finds_two_empty_texts_equal() -> None:
    task = load_task("exact", {})
    with pytest.raises(DataError, match="row-1"):
        task.check_demonstration(demonstration(" "))
    with pytest.raises(DataError, match="row-1"):
        task.check("", demonstration(" "))


def test_exact_refuses_an_option_that_is_not_true_or_false() -> None:
    with pytest.raises(TaskError, match="'ignore_case' is 'false'"):
        load_task("exact", {"ignore_case": "false"})


@pytest.mark.parametrize(
    ("completion", "options", "correct"),
    [
        ("New York", {}, True),
        ("The largest city is  NEW\nyork, of course.", {}, True),
        ("It is **New York**.", {}, True),
        ("It is _New York_.", {}, True),
        ("They call it the Big Apple!", {}, True),
        ("It is big-apple", {}, False),
        ("It is New Yorkshire", {}, False),
        ("It is York, which is new", {}, False),
        ("The largest city is NEW york", {"ignore_case": False}, False),
        ("The largest city is New  York", {"ignore_whitespace": False}, False),
        ("", {}, False),
        (" \n", {}, False),
    ],
)
def test_exact_can_look_for_the_answer_or_an_alias_as_whole_words(
    completion: str, options: dict[str, bool], correct: bool
) -> None:
    task = load_task("exact", {"match": "contains", **options})
    row = demonstration("It is New York.", answer="New York", aliases=["the Big Apple"])
    assert task.check(completion, row).correct is correct
    assert not load_task("exact", options).check("the Big Apple", row).correct


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("7 + 5 = 12.", True),
        ("12, I think", True),
        ("(12)", True),
        ("Twelve!", True),
        ("12.5", False),
        ("3.12", False),
        ("12,000", False),
        ("-12", False),
        ("112", False),
        ("12th", False),
    ],
)
def test_exact_does_not_find_a_number_inside_another(completion: str, correct: bool) -> None:
    row = demonstration("It is 12.", answer=12, aliases=["twelve"])
    assert load_task("exact", {"match": "contains"}).check(completion, row).correct is correct


def compared() -> list[dict[str, Any]]:
    with (Path(__file__).with_name("answers") / "exact.jsonl").open() as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("row", compared(), ids=lambda row: f"{row['answer']}-{row['match']}-{row['text']}")
def test_exact_compares_numbers_by_value_and_finds_only_whole_ones(row: dict[str, Any]) -> None:
    task = load_task("exact", {"match": row["match"]})
    assert task.check(row["text"], demonstration("x", answer=row["answer"])).correct is row["correct"]


def test_exact_asks_for_the_bare_answer_only_where_it_must_stand_alone() -> None:
    assert load_task("exact", {}).ask("Which?") == "Which?\n\nReply with the answer only."
    assert load_task("exact", {"match": "contains"}).ask("Which?") == "Which?"


@pytest.mark.parametrize(
    ("response", "reference"), [("It is four.", "It is four."), ("Sure, that is easy to say!", "4")]
)
def test_exact_gives_a_reference_that_passes_when_the_answer_may_be_contained(response: str, reference: str) -> None:
    task = load_task("exact", {"match": "contains"})
    row = demonstration(response, answer=4, aliases=["four"])
    task.check_demonstration(row)
    assert task.reference_answer(row) == reference
    assert task.check(reference, row).correct


@pytest.mark.parametrize("match", ["whole", "contains"])
@pytest.mark.parametrize(
    ("answer", "response", "refused"),
    [
        (5, "Paris", True), ("Paris", "London", True), ("Paris", "42.", True), (5, "6", True), ("yes", "No.", True),
        (5, "5", False), (5, "five", False), (5, "5.0", False), ("Paris", "paris.", False),
        ("Paris", "In Paris!", False),
        ("Paris", "It is the capital of France.", False), ("New York", "York", False), (None, "Paris", False),
    ],
)  # fmt: skip
def test_exact_refuses_a_row_whose_response_is_another_bare_answer(
    answer: object, response: str, refused: bool, match: str
) -> None:
    task, row = load_task("exact", {"match": match}), demonstration(response, answer=answer)
    if not refused:
        task.check_demonstration(row)
        return
    with pytest.raises(DataError, match=r"row-1.*'answer' says .* but the response is .*mend the row"):
        task.check_demonstration(row)


@pytest.mark.parametrize(
    ("value", "text", "shown"),
    [
        (0.1 + 0.2, "0.3", "0.3"), (2 / 3, "2/3", None), (1 / 3, "1/3", None), (1.1 * 3, "3.3", "3.3"),
        (100 * 1.1, "110", "110"), (0.1 * 3 - 1, "-0.7", "-0.7"), (4.35 * 100, "435", "435"),
    ],
)  # fmt: skip
def test_a_column_with_the_noise_of_arithmetic_holds_the_number_it_comes_from(
    value: float, text: str, shown: str | None
) -> None:
    row = demonstration("?", answer=value)
    for name in ("exact", "math_word_problem"):
        assert load_task(name, {}).check(text, row).correct
        assert not load_task(name, {}).check("0.31", row).correct
    if shown is not None:
        assert load_task("exact", {}).reference_answer(row) == shown


@pytest.mark.parametrize("value", [math.pi, 0.123456789012345, 1e22, 123456789.123456])
def test_a_number_of_many_digits_stays_itself(value: float) -> None:
    row = demonstration("?", answer=value)
    assert load_task("math_word_problem", {}).check(str(value), row).correct
    assert not load_task("math_word_problem", {}).check("22/7", row).correct


@pytest.mark.parametrize("aliases", [None, []])
def test_exact_needs_no_aliases(aliases: object) -> None:
    row = demonstration("It is four.", answer="four", aliases=aliases)
    assert load_task("exact", {"match": "contains"}).check("four, surely", row).correct


@pytest.mark.parametrize("aliases", ["four", [4], [" "], {"four": 4}])
def test_exact_refuses_aliases_that_are_no_list_of_text(aliases: object) -> None:
    row = demonstration("It is 4.", answer=4, aliases=aliases)
    with pytest.raises(DataError, match=r"row-1.*'aliases'"):
        load_task("exact", {"match": "contains"}).check_demonstration(row)
    load_task("exact", {}).check_demonstration(row)


@pytest.mark.parametrize("match", ["contain", True, None, ["whole"]])
def test_exact_refuses_an_unknown_match(match: object) -> None:
    with pytest.raises(TaskError, match=r"'match' is .*give one of whole, contains"):
        load_task("exact", {"match": match})


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("B. London", "B"),
        ("B) London", "B"),
        ("B London", "B"),
        ("B: because it is", "B"),
        ("London", "B"),
        ("london.", "B"),
        ("It is London, of course", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B) London", "B"),
        ("Paris and London are out. The answer is New York.", "C"),
        ("Answer: C", "C"),
        ("I would choose option B", "B"),
        ("New York", "C"),
        ("York", "D"),
        ("The answer is \\boxed{B}", "B"),
        ("B. Paris", None),
        ("Paris or London", None),
        ("A city in Europe", None),
        ("E", None),
        ("", None),
        ("(A) or (B)", None),
        ("Londoners", None),
    ],
)
def test_an_option_is_picked_by_letter_or_words(text: str, label: str | None) -> None:
    assert chosen_label(text, dict(zip("ABCD", CITIES, strict=True))) == label


def picks() -> list[tuple[str, str | None, list[str]]]:
    with (Path(__file__).with_name("answers") / "multiple_choice.jsonl").open() as lines:
        return [(row["text"], row["label"], row.get("choices", CITIES)) for row in map(json.loads, lines)]


@pytest.mark.parametrize(("text", "label", "choices"), picks())
def test_what_is_picked_is_what_people_read(text: str, label: str | None, choices: list[str]) -> None:
    assert chosen_label(text, dict(zip("ABCD", choices, strict=False))) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("1", "1"), ("2", "2"), ("(2)", "2"), ("Option 1", "1"), ("The answer is 2.", "2"), ("12", "1"), ("15", "2"),
        ("The answer is 12.", "1"), ("-12", None), ("12/5", None), ("12.5", None), ("120", None), ("1 or 2", None),
        ("12 of 15", None), ("1. 12", "1"), ("It is 15, not 12.", "2"),
    ],
)  # fmt: skip
def test_labels_and_options_may_be_numbers(text: str, label: str | None) -> None:
    assert chosen_label(text, {"1": "12", "2": "15"}) == label


def test_an_option_may_name_others_or_be_a_letter() -> None:
    choices = {"A": "Paris", "B": "London", "C": "Both A and B", "D": "None of the above"}
    assert chosen_label("Both A and B", choices) == "C"
    assert chosen_label("The answer is both A and B.", choices) == "C"
    assert chosen_label("None of the above.", choices) == "D"
    assert chosen_label("The answer is D, none of the above.", choices) == "D"


def test_a_position_that_a_gap_has_made_a_float_is_that_position() -> None:
    row = demonstration("?", list_choices("Which?", CITIES), choices=CITIES, answer=1.0)
    CHOICE.check_demonstration(row)
    assert CHOICE.check("B", row).correct


def test_options_that_contain_each_other_are_told_apart() -> None:
    assert chosen_label("about 10 km away", {"A": "10", "B": "10 km"}) == "B"
    assert chosen_label("-5", {"A": "5", "B": "-5"}) == "B"


@pytest.mark.parametrize(
    "fields",
    [
        {"choices": CITIES, "answer": "B"},
        {"choices": CITIES, "answer": 1},
        {"choices": CITIES, "answer": "London"},
        {"choices": {"1": "Paris", "2": "London"}, "answer": "2"},
        {"choices": {"label": ["A", "B"], "text": ["Paris", "London"]}, "answer": "B"},
        {"choices": {"1": "Paris", "2": "London"}, "answer": 2},
        {"choices": {"1": "Paris", "2": "London", "3": "York"}, "answer": 2.0},
    ],
)
def test_every_form_of_choices_and_answer_is_read_and_its_reference_passes(
    fields: dict[str, object],
) -> None:
    row = demonstration("?", list_choices("Which?", CITIES), **fields)
    CHOICE.check_demonstration(row)
    assert CHOICE.check(CHOICE.reference_answer(row), row).correct
    assert CHOICE.check("London", row).correct
    wrong = CHOICE.check("Paris", row)
    assert (wrong.correct, wrong.reason) == (False, "wrong_answer")
    assert CHOICE.check("hm", row).reason == "no_choice"


def test_without_an_answer_field_the_response_says_which() -> None:
    row = demonstration("B. London", list_choices("Which?", CITIES), choices=CITIES)
    CHOICE.check_demonstration(row)
    assert CHOICE.reference_answer(row) == "B. London"
    assert CHOICE.check("B", row).correct


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"answer": "A"}, "'choices' is missing"),
        ({"choices": "Paris", "answer": "A"}, "not a list"),
        ({"choices": ["Paris"], "answer": "A"}, "1 usable"),
        ({"choices": ["Paris", "paris"], "answer": "A"}, "repeated"),
        ({"choices": CITIES, "answer": "Rome"}, "'Rome'"),
        ({"choices": CITIES, "answer": 4}, "4"),
        ({"choices": CITIES}, "no field 'answer'"),
        ({"choices": {"label": ["A", "A"], "text": CITIES[:2]}, "answer": "A"}, "repeated labels"),
        ({"choices": {"a": "Paris", "A": "London"}, "answer": "A"}, "repeated labels"),
        ({"choices": [*CITIES, "Rome"], "answer": "A"}, "'Rome'.*does not show"),
    ],
)
def test_a_question_that_cannot_be_checked_is_named(fields: dict[str, object], problem: str) -> None:
    row = demonstration("?", list_choices("Which?", CITIES), **fields)
    with pytest.raises(DataError, match=rf"row-1.*{problem}"):
        CHOICE.check_demonstration(row)


def test_a_label_comes_before_the_words_of_another_option() -> None:
    row = demonstration("?", "1. 2\n2. 1", choices={"1": "2", "2": "1"}, answer="2")
    assert CHOICE.check("Option 2", row).correct


def test_a_response_that_picks_another_option_than_the_answer_is_refused() -> None:
    prompt = list_choices("Which?", CITIES)
    CHOICE.check_demonstration(demonstration("The answer is B.", prompt, choices=CITIES, answer="B"))
    with pytest.raises(DataError, match="says B but the response states A"):
        CHOICE.check_demonstration(demonstration("The answer is A.", prompt, choices=CITIES, answer="B"))


def test_free_form_accepts_everything_but_nothing() -> None:
    task = load_task("free_form", {})
    row = demonstration("Hello.")
    task.check_demonstration(row)
    assert task.ask("Hi") == "Hi"
    assert task.check(task.reference_answer(row), row).correct
    assert task.check(" \n", row).reason == "empty"
    with pytest.raises(DataError, match="row-1"):
        task.check_demonstration(demonstration(" "))
