"""Demonstrations under the rules that will judge rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from onpolicy_sdft.config.schema import ScreeningConfig
from onpolicy_sdft.screening.demonstrations import refused_demonstrations
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.types import CheckResult, Demonstration, PromptPair, Turn

END = 0


class SaysYes(FreeForm):
    has_check = True

    def __init__(self, *, quick: bool = True) -> None:
        self.check_is_quick = quick
        self.num_asked = 0

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        self.num_asked += 1
        if completion == "raises":
            raise ValueError(completion)
        return CheckResult("yes" in completion, "no_yes")


def decode(token_ids: Sequence[int]) -> str:
    return "".join(chr(token) for token in token_ids if token != END)


def rows(*responses: str) -> list[PromptPair]:
    return [
        PromptPair(Demonstration(f"id-{n}", (Turn("user", "q"),), said), (1,), (1, 2), (*map(ord, said), END))
        for n, said in enumerate(responses)
    ]


def screen(task: SaysYes, **options: object) -> Screen:
    return Screen(ScreeningConfig(**{"max_check_errors": 1.0, **options}), task, decode, num_workers=2)


def test_rules_that_refuse_demonstrations_are_counted_and_named_in_one_line() -> None:
    shown = rows("yes", "no", "yes" * 20, "no way", "raises")
    found = refused_demonstrations(screen(SaysYes()), shown, max_new_tokens=30)
    assert found.by_rule == Counter(check=2, truncated=1, check_error=1)
    said = found.line()
    assert "refuse 4 of 5 demonstrations: check 2, " in said
    assert "The first: 'id-1', by check" in said
    assert "--screening.check keep" in said
    assert "\n" not in said
    assert not refused_demonstrations(screen(SaysYes(), check="keep", truncated="keep"), shown, 30).by_rule


def test_what_is_compared_with_the_demonstration_never_refuses_it() -> None:
    table = "yes | 0 0 0 0 0 0 |\n" * 40
    found = refused_demonstrations(screen(SaysYes(), banned_phrases=["yes"]), rows(table, "yes, sir"), 10_000)
    assert found.line() == "the rules of screening would refuse 0 of 2 demonstrations"


def test_a_check_that_takes_long_is_asked_of_some_rows_spread_over_all() -> None:
    task = SaysYes(quick=False)
    found = refused_demonstrations(screen(task), rows(*["yes"] * 450, *["no"] * 450), 50)
    assert found.num_looked_at == task.num_asked == 180
    assert found.by_rule == Counter(check=90)


def test_of_very_many_demonstrations_ten_thousand_are_looked_at_spread_over_all() -> None:
    task = SaysYes()
    found = refused_demonstrations(screen(task), rows(*["yes"] * 10_002, *["no"] * 10_002), 50)
    assert found.num_looked_at == task.num_asked == 20_004 // 3
    assert found.by_rule == Counter(check=3_334)
