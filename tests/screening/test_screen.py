from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from onpolicy_sdft.config.schema import ScreeningConfig
from onpolicy_sdft.errors import TaskError
from onpolicy_sdft.screening.bare import BareAnswers
from onpolicy_sdft.screening.reasons import REASONS
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.types import CheckResult, Demonstration, NoiseKey, PromptPair, Rollout, Turn

END = 0
MARK = "\x01"  # a control token
RESPONSE = "the expert's own answer"


class SaysYes(FreeForm):
    """Right when the answer holds a yes; counts how often it is asked."""

    has_check = True

    def __init__(self) -> None:
        self.asked: list[str] = []

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        self.asked.append(completion)
        if "raises" in completion:
            raise RecursionError("too deep")
        return CheckResult("yes" in completion, "no_yes")


def encode(text: str) -> tuple[int, ...]:
    return tuple(ord(character) for character in text)


def decode(token_ids: Sequence[int]) -> str:
    return "".join(chr(token) for token in token_ids if token != END)


def make_pair(name: str = "id-0", response: str = RESPONSE) -> PromptPair:
    demonstration = Demonstration(name, (Turn("user", "q"),), response)
    return PromptPair(demonstration, (1, 2), (1, 3, 2), (*encode(response), END))


def rollout(text: str, *, truncated: bool = False, attempt: int = 0) -> Rollout:
    ids = encode(text) + (() if truncated else (END,))
    numbers = (0.0,) * len(ids)
    reason = "length" if truncated else "stop"
    return Rollout(NoiseKey(0, 0, "id-0", 0, attempt), (1, 3, 2), ids, numbers, numbers, numbers, reason)


#: Right answers of the policy's own that are much longer than anything here.
BARE = BareAnswers(8, 5, length=60.0, num_steps=9.0, of_right=True, length_score=0.6, surprise=0.2, surprise_high=0.3)


def controls(token_ids: Sequence[int]) -> tuple[str, ...]:
    return tuple("<mark>" for token in token_ids if token == ord(MARK))


def screen(**options: Any) -> Screen:
    return Screen(ScreeningConfig(**options), SaysYes(), decode, controls=controls)


@pytest.mark.parametrize("end_ids", [(7,), (ord("!"), 7)])
def test_a_text_that_stopped_at_another_token_is_learned_with_the_templates_end(end_ids) -> None:
    pair = replace(make_pair(), response_ids=(*encode("no"), *end_ids))
    judge = Screen(ScreeningConfig(), SaysYes(), decode, controls=controls, end_ids=end_ids)
    kept = judge.judge(pair, rollout("yes, sir"), 0)
    assert kept.verdict == "keep"
    assert kept.token_ids == (*encode("yes, sir"), *end_ids)
    assert kept.rollout == rollout("yes, sir"), "what was sampled stays on record"
    assert judge.judge(pair, rollout("yes, sir!"), 0).token_ids == (*encode("yes, sir!"), 7)
    assert judge.judge(pair, rollout("yes, sir", truncated=True), 0).token_ids != (*encode("yes, sir"), *end_ids)
    own = replace(rollout("yes, sir"), token_ids=(*encode("yes, sir"), 7))
    assert judge.judge(pair, own, 0).token_ids == own.token_ids
    assert screen().judge(pair, rollout("yes, sir"), 0).token_ids == rollout("yes, sir").token_ids
    other = replace(pair, response_ids=(*encode("no"), 9))  # an answer of its own kind, such as a call
    called = replace(rollout("yes, sir"), token_ids=(*encode("yes, sir"), 9))
    assert judge.judge(other, called, 0).token_ids == called.token_ids


def test_where_there_are_tools_a_rollout_may_hold_what_marks_and_ends_calls() -> None:
    said = f"yes {MARK}f"
    called = replace(rollout(said), token_ids=(*encode(said), 9))
    judge = Screen(
        ScreeningConfig(control="drop"), SaysYes(), decode, controls=controls, end_ids=(7,),
        call_marks={ord(MARK): "<mark>", 9: "<call>"},
    )  # fmt: skip
    plain = replace(make_pair(), response_ids=(*encode("no"), 7))
    assert judge.judge(plain, called, 0).reason == "control"
    demonstration = replace(plain.demonstration, turns=(Turn("tools", "[]"), *plain.demonstration.turns))
    with_tools = judge.judge(replace(plain, demonstration=demonstration), called, 0)
    assert with_tools.verdict == "keep"
    assert with_tools.token_ids == called.token_ids


def comparing(**options: Any) -> Screen:
    made = screen(**options)
    made.bare = BARE
    return made


def never(pairs: Sequence[PromptPair], attempt: int) -> Sequence[Rollout]:
    raise AssertionError("nothing is to be drawn again")


REFUSED = {
    "empty": rollout("  "),
    "truncated": rollout("yes, and then", truncated=True),
    "control": rollout(f"yes, {MARK} this is it"),
    "looping": rollout("well, well, " * 5),
    "banned": rollout("yes, as my own response"),
    "length": rollout("yes" + "".join(map(str, range(200)))),
    "answer_only": rollout("yes: 123"),
    "check_error": rollout("no, this raises it"),
    "check": rollout("no, not so at all"),
}


def test_a_rollout_without_a_reason_is_learned_as_it_was_written():
    written = rollout("yes, this is it")
    (target,) = screen()([make_pair()], [written], never)
    assert (target.verdict, target.reason, target.attempt) == ("keep", "", 0)
    assert target.token_ids == written.token_ids
    assert target.text == "yes, this is it"
    assert target.rollout is written


def test_every_reason_has_an_example_here():
    assert tuple(REFUSED) == REASONS


#: What has a verdict of its own; a check that fails is treated as one that is not passed.
OF_CONFIG = {reason: "check" if reason == "check_error" else reason for reason in REASONS}


@pytest.mark.parametrize("reason", REASONS)
def test_by_default_every_reason_falls_back_to_the_demonstration(reason):
    shown = make_pair()
    (target,) = comparing()([shown], [REFUSED[reason]], never)
    assert (target.verdict, target.reason) == ("fallback", reason)
    assert target.token_ids == shown.response_ids
    assert target.text == RESPONSE
    assert target.rollout is REFUSED[reason]


@pytest.mark.parametrize("reason", REASONS)
def test_a_dropped_rollout_has_no_tokens_to_learn(reason):
    (target,) = comparing(**{OF_CONFIG[reason]: "drop"})([make_pair()], [REFUSED[reason]], never)
    assert (target.verdict, target.reason, target.token_ids) == ("drop", reason, ())
    assert target.rollout is REFUSED[reason]


@pytest.mark.parametrize("reason", REASONS)
def test_a_reason_that_is_kept_is_none(reason):
    others = dict.fromkeys(OF_CONFIG.values(), "keep")
    (target,) = comparing(**others)([make_pair()], [REFUSED[reason]], never)
    assert (target.verdict, target.reason) == ("keep", "")
    assert target.token_ids == REFUSED[reason].token_ids


def test_a_reason_that_is_kept_does_not_hide_a_graver_one():
    wrong = rollout("no, and then", truncated=True)
    (target,) = screen(truncated="keep", check="drop")([make_pair()], [wrong], never)
    assert (target.verdict, target.reason) == ("drop", "check")


def test_the_cheapest_reason_is_named_and_the_check_is_not_run_for_nothing():
    judge = screen()
    (target,) = judge([make_pair()], [rollout("no, said my response, " * 5, truncated=True)], never)
    assert target.reason == "truncated"
    assert judge.task.asked == []
    judge = screen(check="keep")
    judge([make_pair()], [rollout("no, not so at all")], never)
    assert judge.task.asked == []


def test_without_a_rollout_the_demonstration_is_the_target_and_nothing_is_checked():
    judge, shown = screen(), make_pair()
    (target,) = judge([shown], [None], never)
    assert (target.verdict, target.reason, target.rollout) == ("keep", "", None)
    assert (target.token_ids, target.text) == (shown.response_ids, RESPONSE)
    assert judge.task.asked == []


def test_a_copy_is_verbatim_by_its_words_whatever_becomes_of_it():
    pair = make_pair()
    hinted = replace(pair, demonstration=replace(pair.demonstration, privileged="a hint"))
    draws = [(pair, f" {RESPONSE}\n"), (pair, "yes"), (hinted, RESPONSE), (hinted, "a hint")]
    targets = screen()([shown for shown, _ in draws], [rollout(text) for _, text in draws], never)
    assert [target.is_verbatim for target in targets] == [True, False, False, True]
    assert targets[0].verdict == "fallback"  # it has no yes


def test_targets_come_in_the_order_of_the_examples():
    names = [f"id-{i}" for i in range(20)]
    rollouts = [rollout("yes, sir") if i % 3 else None if i % 2 else rollout("no, sir") for i in range(20)]
    targets = screen()([make_pair(name) for name in names], rollouts, never)
    assert [target.pair.demonstration.example_id for target in targets] == names
    assert [target.rollout for target in targets] == rollouts


def test_a_refused_rollout_is_drawn_again_and_only_it():
    asked: list[tuple[list[str], int]] = []

    def again(retried: Sequence[PromptPair], attempt: int) -> Sequence[Rollout]:
        asked.append(([v.demonstration.example_id for v in retried], attempt))
        return [rollout("yes, at last", attempt=attempt) for _ in retried]

    rollouts = [rollout("yes, sir"), rollout("no, sir"), rollout("no, sir")]
    targets = screen(check="resample")([make_pair("a"), make_pair("b"), make_pair("c")], rollouts, again)
    assert asked == [(["b", "c"], 1)]
    assert [target.verdict for target in targets] == ["keep"] * 3
    assert [target.attempt for target in targets] == [0, 1, 1]
    assert targets[1].text == "yes, at last"


@pytest.mark.parametrize("max_attempts", [1, 2, 4])
def test_after_the_last_attempt_the_demonstration_is_learned(max_attempts):
    attempts: list[int] = []

    def again(retried: Sequence[PromptPair], attempt: int) -> Sequence[Rollout]:
        attempts.append(attempt)
        return [rollout("no, sir", attempt=attempt) for _ in retried]

    shown = make_pair()
    (target,) = screen(check="resample", max_attempts=max_attempts)([shown], [rollout("no, sir")], again)
    assert attempts == list(range(1, max_attempts))
    assert (target.verdict, target.reason, target.attempt) == ("fallback", "check", max_attempts - 1)
    assert target.token_ids == shown.response_ids
    assert target.rollout.key.attempt == max_attempts - 1


def test_a_new_draw_is_judged_by_its_own_reason():
    def again(retried: Sequence[PromptPair], attempt: int) -> Sequence[Rollout]:
        return [REFUSED["truncated"] for _ in retried]

    (target,) = screen(check="resample", truncated="drop")([make_pair()], [REFUSED["check"]], again)
    assert (target.verdict, target.reason, target.attempt) == ("drop", "truncated", 1)


def test_no_examples_give_no_targets():
    assert screen()([], [], never) == []


def test_what_the_check_accepts_is_neither_too_short_nor_repetitive():
    long = make_pair(response="a long demonstration, " * 20)
    for text in ("yes", "yes, well, " * 5):
        (target,) = screen()([long], [rollout(text)], never)
        assert (target.verdict, target.correct) == ("keep", True), text
    (target,) = screen()([long], [rollout("no")], never)
    assert (target.reason, target.correct) == ("length", False)


def test_without_a_check_nothing_overrules_them():
    judge = Screen(ScreeningConfig(), FreeForm(), decode)
    (target,) = judge([make_pair()], [rollout("yes, well, " * 5)], never)
    assert target.reason == "looping"


def test_a_demonstration_that_loops_or_has_control_tokens_itself_may_be_followed():
    judge = Screen(ScreeningConfig(), FreeForm(), decode, controls=controls)
    for text in ("0 0 0 0\n" * 12, f"call {MARK} here"):
        (target,) = judge([make_pair(response=text)], [rollout(text)], never)
        assert (target.verdict, target.reason) == ("keep", ""), text


def test_a_check_that_raises_is_a_verdict_with_its_text_until_too_many_do():
    judge = screen()
    target = judge.judge(make_pair(), REFUSED["check_error"], 0)
    assert (target.verdict, target.reason, target.correct) == ("fallback", "check_error", False)
    result = judge.check("raises", make_pair().demonstration)
    assert (result.reason, result.answer) == ("check_error", "RecursionError: too deep")
    with pytest.raises(TaskError, match=r"9 of 9 checks.*RecursionError: too deep.*screening.max_check_errors"):
        [judge.judge(make_pair(), REFUSED["check_error"], 0) for _ in range(10)]


def test_few_checks_that_raise_among_many_do_not_end_the_run():
    judge = screen(max_check_errors=0.5)
    for _ in range(50):
        judge.judge(make_pair(), REFUSED["check"], 0)
        judge.judge(make_pair(), REFUSED["check_error"], 0)
    assert (judge.check.num_errors, judge.check.num_checks) == (50, 100)


def test_an_error_that_says_what_to_do_is_raised():
    class Unready(SaysYes):
        def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
            raise TaskError("start the server")

    with pytest.raises(TaskError, match="start the server"):
        Screen(ScreeningConfig(), Unready(), decode).judge(make_pair(), rollout("yes, sir"), 0)
