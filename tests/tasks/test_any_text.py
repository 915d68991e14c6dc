"""No text that a model can write makes a check raise or takes it long."""

from __future__ import annotations

import random
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from onpolicy_sdft.screening.mentions import Mentions
from onpolicy_sdft.tasks import TASKS, Task, load_task
from onpolicy_sdft.tasks.code_text import programs
from onpolicy_sdft.types import CheckResult, Demonstration, Turn

#: In bytes, about 8,000 tokens: a character such as ½ is a token or two by itself.
LENGTH = 40_000
SECONDS = 0.1
PROMPT = "Functions: f(x: int), g(a: str). Options: A. Paris B. London C. 12. How many?"
ROWS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("exact", {}, "Paris", {}),
    ("exact", {"match": "contains"}, "Paris", {"aliases": ["the capital"]}),
    ("exact", {"match": "contains"}, "12", {"answer": 12.0}),
    ("free_form", {}, "Any.", {}),
    ("function_call", {}, "f(x=1)", {}),
    ("function_call", {}, "f(x=1)", {"possible_answers": {"f": {"x": [1, 2]}, "g": {"a": ["b", ""]}}}),
    ("function_call", {"match": "legacy"}, "f(x=1)", {}),
    ("math_word_problem", {}, "The answer is 12.", {}),
    ("multiple_choice", {}, "A", {"choices": ["Paris", "London", "12"], "answer": "A"}),
    ("multiple_choice", {}, "A", {"choices": ["$", "%s (", "`", "a .*", "\\", "B"], "answer": "A"}),
    ("multiple_choice", {}, "1", {"choices": {"1": "2", "(2)": "12", "a": "b"}, "answer": "1"}),
    ("refusal", {}, "I cannot help with that.", {}),
    ("refusal", {"phrases": "legacy"}, "I cannot help with that.", {}),
]
#: What checks look for, and what opens something.
PARTS = """
f( g( ( ) [ ] { } f(x=1) f(x='a') f(x= f(x=f( (1) .g( x= = == , ; : ! ? . ... " ' \\ \\d ` ``` ```python ~~~ \n \n\n \t
{"name": "arguments": {"name":"f","arguments":{"x":1}} {"a":1} f{"x":1} [ARGS] to=functions.f <tool_call> </tool_call>
<function=f> <parameter=x> </parameter> <arg_key> <arg_value> <think> </think> <answer> </answer> assistantfinal
[TOOL_CALLS] 1 12 -3 1.5 .5 1,000 1.000 1_000 1e5 e9 10^3 ^ ^{ 3/4 / 1/0 ½ ² ١ １２ 10:30 2024-05-01
million k % $ € - – — − + * × ± √ π
\\boxed{ \\frac{ \\frac{1}{2} \\frac12 \\text{ \\sqrt{ \\left( \\pm #### <<1+1=2>>
the answer is answer: Answer answer to so is not never isn't but or and to between A B (A)
A. B? option Paris London rather than wrong because wait, maybe
def f(x): return x\n import from lambda: class @ if for x in not True None x x_1 _ * ** 0xFF 答案 是 万 参考 the example
my response reference answer as I said I cannot sorry \x00 \ud83d\ude00 \u202e \u0301 \ufeff \r null true
NaN Infinity -Infinity \\overline{ (2,5) 0.( 5! ❌ ✅ but hmm doubt <!-- --> ~~ “ 选B :'{ >>> \xa0 Step 1: 2. [3]
"""


def parts() -> list[str]:
    return [part.encode().decode("unicode_escape") if part.startswith("\\u") or "\\x" in part else
            part.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r").replace("\\\\", "\\")
            for part in PARTS.split()]  # fmt: skip


def checks() -> list[tuple[Task, Demonstration]]:
    return [
        (load_task(name, options), Demonstration("row-1", (Turn("user", PROMPT),), response, fields))
        for name, options, response, fields in ROWS
    ]


CHECKS = checks()
CODE = load_task("python_code", {"allow_execution": True})
MENTIONS = Mentions(["my response"], "reference", "Using the reference answer as a guide, write your own response.")


def judge(text: str) -> Iterator[tuple[str, float]]:
    """Yield every check and the processor time it took: a busy machine is no slow check."""
    for task, row in CHECKS:
        started = time.process_time()
        result = task.check(text, row)
        yield task.name, time.process_time() - started
        assert isinstance(result, CheckResult)
    started = time.process_time()
    programs(text)
    yield "programs", time.process_time() - started
    started = time.process_time()
    MENTIONS.find(text, CHECKS[0][1])
    yield "mentions", time.process_time() - started


def test_every_task_is_tried() -> None:
    assert {name for name, *_ in ROWS} | {"python_code"} == set(TASKS)


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 50))])
@pytest.mark.few(4)
def test_random_texts_never_make_a_check_raise_or_take_a_second(seed: int) -> None:
    random_, known = random.Random(seed), parts()
    for _ in range(100):
        joint = random_.choice(["", " ", " ", "\n"])
        chosen = random_.choices(random_.sample(known, random_.randint(1, 12)), k=random_.randint(1, 60))
        assert not {name: seconds for name, seconds in judge(joint.join(chosen)) if seconds > 1}


@pytest.mark.parametrize("seed", range(6))
def test_bytes_and_characters_of_any_kind_never_make_a_check_raise(seed: int) -> None:
    random_ = random.Random(seed)
    for _ in range(100):
        text = "".join(
            chr(random_.choice([random_.randrange(32, 127), random_.randrange(0xD800), 10])) for _ in range(80)
        )
        for _ in judge(text):
            pass


def some(texts: list[str], each: int) -> list[Any]:
    """Return one of so many texts for the default tests, and the others for the slow ones."""
    return [text if not i % each else pytest.param(text, marks=pytest.mark.slow) for i, text in enumerate(texts)]


@pytest.mark.parametrize("part", some(list(dict.fromkeys(parts())), 3), ids=repr)
@pytest.mark.few(12)
def test_no_part_over_and_over_takes_long(part: str) -> None:
    text = part * (LENGTH // len(part.encode("utf-8", "replace")))
    assert not {name: seconds for name, seconds in judge(text) if seconds > SECONDS and not is_quick(name, text)}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_no_mixture_of_two_parts_over_and_over_takes_long(seed: int) -> None:
    random_, known = random.Random(seed), parts()
    slow = []
    for _ in range(12):
        pair = "".join(random_.sample(known, 2)) + random_.choice(["", " "])
        text = pair * (LENGTH // len(pair.encode("utf-8", "replace")))
        slow += [(name, pair) for name, seconds in judge(text) if seconds > SECONDS and not is_quick(name, text)]
    assert not slow


def is_quick(name: str, text: str) -> bool:
    """Whether a check is quick after all, on a machine that was busy."""
    return any(min(seconds for each, seconds in judge(text) if each == name) <= SECONDS for _ in range(3))


@pytest.mark.parametrize(
    "text",
    [
        "f(x=" * 190 + ")" * 190,
        "f" + "(1)" * 13_000,
        "f(" * 20_000,
        "f(x=" + "[" * 39_000,
        "f(x=" + "-" * 39_000 + "1)",
        "f(x=" + "1+" * 19_000 + "1)",
        '{"name":"f","arguments":' + '{"x":' * 7_000,
        "[" * 40_000 + "]" * 40_000,
        "9" * LENGTH,
        "10^" * 13_000,
        "1e999999999",
        "10^9999",
        "((((-" * 8_000,
        "f(x=0x" + "f" * 5_000 + ")",
        "call:f{location: Paris in the spring, days" + " and nights" * 3_000,
        "\\boxed{" * 5_000,
    ],
    ids=lambda text: text[:16],
)
@pytest.mark.few(6)
def test_what_is_nested_or_long_is_no_answer_and_no_error(text: str) -> None:
    slow = {name: seconds for name, seconds in judge(text) if seconds > SECONDS and not is_quick(name, text)}
    assert not slow


#: Openings that nothing closes: of calls, tags, quotes, formulas, verdicts, denials.
OPENINGS = """
call:f{ call:f{a:1, call:f{<escape> <escape> ```json [CALL_ID]json <arg_key>a</arg_key><arg_value> <!-- ~~f(
<del> \\overline{ \\frac{a}{ 0.( 1.\\bar :'{ {, "\\"', >~>>~ ```python~x= Not~A,~ A~seems~right~but~
between~A~and~B,~ Step~1:~ (1)~ no~doubt~ the~answer~can't~be~ n't~be~anything~but~ if~I~had~ wrong:~f(x=1)~
half~of~ 12~to~ {2,5} roots~are~ as~the~expert~ I~cannot~ a~solution~above~ i'm~an~ai~and~ the~ hmm~
"""


@pytest.mark.parametrize("opening", some(OPENINGS.split(), 2), ids=repr)
@pytest.mark.few(5)
def test_no_cut_off_opening_over_and_over_takes_a_second(opening: str) -> None:
    part = opening.replace("~", " ")
    for text in ((part * 32_000)[:32_000], (part * 3_200)[:3_200].strip() + "\n" + part):
        assert not {name: seconds for name, seconds in judge(text) if seconds > 1}


@pytest.mark.parametrize(
    "text", ["f(" * 300, "```python\n" + "(" * 5_000 + "\n```", "x = " + "-" * 30_000 + "1", "\x00", "def f(\x00"]
)
def test_programs_of_any_kind_are_only_wrong(text: str) -> None:
    row = Demonstration("row-1", (Turn("user", "q"),), "x", {"tests": "assert f(1) == 2"})
    assert not CODE.check(text, row).correct


def test_checks_in_threads_leave_the_warnings_of_the_process_alone() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        before = list(warnings.filters)
        threads = [
            threading.Thread(target=lambda: [list(judge("f(x='\\d') " * 20)) for _ in range(20)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before
        warnings.warn("still heard", UserWarning, stacklevel=1)
    assert "still heard" in [str(each.message) for each in heard]
