"""Questions with listed options."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tasks.choice_mentions import plain
from onpolicy_sdft.tasks.choices import chosen_label, states_choice
from onpolicy_sdft.tasks.protocol import Task, bad_field, number_in_field, short_message
from onpolicy_sdft.types import CheckResult, Demonstration


@dataclass(frozen=True)
class MultipleChoice(Task):
    """The completion picks the right option, by its letter or its words.

    Rows have a field ``choices_field``: a list of options, a mapping from label to option, or
    ``{"label": [...], "text": [...]}``; and a field ``answer_field``: the label, or the option's
    words as text, or its position counted from 0 (2.0 as well, as a Parquet column with gaps has it), in this order:
    where the labels are 1, 2 and 3, the answer 1 is the first option. The prompt
    lists the options.

    Attributes:
        choices_field: Column of the options.
        answer_field: Column of the right option; rows without it have it in the response.
    """

    choices_field: str = "choices"
    answer_field: str = "answer"
    name = "multiple_choice"
    work_wording = 'Say what speaks for and against each option, then end with "The answer is" and one letter.'
    check_is_quick = True

    def ask(self, prompt: str) -> str:
        """Ask for the letter."""
        return f"{prompt}\n\nAnswer with the letter of the right option."

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        """Compare the picked option with the right one."""
        choices = self._choices(demonstration)
        right = self._right(demonstration, choices)
        picked = chosen_label(completion, choices)
        if picked is None:
            message = short_message(f"The answer picks no single option. Name one of {', '.join(choices)}.")
            return CheckResult(False, "no_choice", message=message, expected=right)
        if picked != right:
            message = short_message(f"{picked} is not the right option.")
            return CheckResult(False, "wrong_answer", picked, message, right)
        return CheckResult(True, answer=picked)

    def reference_answer(self, demonstration: Demonstration) -> str:
        """Return the response where it picks the right option, else the right letter."""
        choices = self._choices(demonstration)
        right = self._right(demonstration, choices)
        response = demonstration.response
        return response if chosen_label(response, choices) == right else right

    def check_demonstration(self, demonstration: Demonstration) -> None:
        """Refuse missing or hidden options, and an answer that is none of them or not the response's."""
        choices = self._choices(demonstration)
        right = self._right(demonstration, choices)
        stated = chosen_label(demonstration.response, choices) if states_choice(demonstration.response) else None
        if stated not in (None, right):
            raise bad_field(demonstration, self.answer_field, f"says {right} but the response states {stated}")
        shown = plain(" ".join(turn.content for turn in demonstration.turns))
        hidden = [option for option in choices.values() if plain(option) not in shown]
        if hidden:
            raise bad_field(
                demonstration,
                self.choices_field,
                f"has {hidden[0]!r}, which the prompt does not show: list the options there",
            )

    def _choices(self, demonstration: Demonstration) -> dict[str, str]:
        """Return the options by label."""
        value = demonstration.fields.get(self.choices_field)
        if value is None:
            raise bad_field(demonstration, self.choices_field, "is missing")
        if isinstance(value, Mapping) and {"label", "text"} == set(value):
            labels, options = list(value["label"]), list(value["text"])
        elif isinstance(value, Mapping):
            labels, options = list(value), list(value.values())
        elif isinstance(value, Sequence) and not isinstance(value, str):
            labels, options = list(string.ascii_uppercase[: len(value)]), list(value)
        else:
            raise bad_field(demonstration, self.choices_field, f"is {value!r}, not a list of options")
        texts = [str(option) for option in options]
        if len(labels) != len(texts) or len(texts) < 2:
            raise bad_field(demonstration, self.choices_field, f"has {len(texts)} usable options")
        if len({plain(text) for text in texts}) != len(texts) or not all(map(plain, texts)):
            raise bad_field(demonstration, self.choices_field, "has empty or repeated options")
        names = [str(label).strip() for label in labels]
        if len({name.casefold() for name in names}) != len(names) or not all(names):
            raise bad_field(demonstration, self.choices_field, f"has empty or repeated labels: {names}")
        return dict(zip(names, texts, strict=True))

    def _right(self, demonstration: Demonstration, choices: Mapping[str, str]) -> str:
        """Return the label of the right option."""
        value = demonstration.fields.get(self.answer_field)
        if value is None:
            label = chosen_label(demonstration.response, choices)
            if label is None:
                raise DataError(
                    f"example {demonstration.example_id!r}: no field {self.answer_field!r}, and "
                    f"the response {demonstration.response[:100]!r} picks no single option; "
                    "mend the row or leave it out"
                )
            return label
        position = number_in_field(demonstration, self.answer_field)
        said = str(value).strip() if position is None or position.denominator > 1 else str(position.numerator)
        for label in choices:
            if said.casefold() == label.casefold():
                return label
        if position is not None and position.denominator == 1 and 0 <= position < len(choices):
            return list(choices)[int(position)]
        for label, option in choices.items():
            if plain(said) == plain(option):
                return label
        raise bad_field(demonstration, self.answer_field, f"is {value!r}, which is none of {list(choices)}")
