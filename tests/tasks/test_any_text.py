"""No text that a model can write makes a check raise or takes it long."""

from __future__ import annotations

import random
import re
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from onpolicy_sdft.config.schema import ScreeningConfig
from onpolicy_sdft.screening.bare import num_steps
from onpolicy_sdft.screening.mentions import Mentions
from onpolicy_sdft.screening.reasons import is_looping
from onpolicy_sdft.tasks import TASKS, Task, load_task
from onpolicy_sdft.tasks.code_text import programs
from onpolicy_sdft.types import CheckResult, Demonstration, Turn

#: In bytes, about 8,000 tokens: a character such as ½ is a token or two by itself.
LENGTH = 40_000
NUM_TOKENS = 8_000
SECONDS = 0.1
SCREENING = ScreeningConfig()
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


def readers(text: str) -> list[tuple[str, Callable[[], object]]]:
    """Return all that reads a text: the checks, by task, and the rules of the screen."""
    ids = list(text.encode("utf-8", "replace"))[:NUM_TOKENS]
    return [
        *((task.name, partial(task.check, text, row)) for task, row in CHECKS),
        ("programs", partial(programs, text)),
        ("mentions", partial(MENTIONS.find, text, CHECKS[0][1])),
        ("num_steps", partial(num_steps, text)),
        ("looping", partial(is_looping, ids, SCREENING.loop_ngram, SCREENING.loop_repeats, ids)),
    ]


def judge(text: str) -> None:
    """Let every reader read a text."""
    for name, read in readers(text):
        found = read()
        assert name not in TASKS or isinstance(found, CheckResult)


def seconds(read: Callable[[], object]) -> float:
    """Return the processor time that a reader takes in this thread."""
    started = time.thread_time()
    read()
    return time.thread_time() - started


def slow(text: str) -> list[tuple[str, float]]:
    """Return the readers that take too long, in seconds, at their best of a few times on the machine as it is now."""
    long = [(name, read) for name, read in readers(text) if seconds(read) > SECONDS]
    best = [(name, min(seconds(read) / slowness() for _ in range(4))) for name, read in long]
    return [(name, taken) for name, taken in best if taken > SECONDS]


def slowness() -> float:
    """Return how much slower than by itself a core computes now: processes that share caches slow each other down."""
    line = "x = 12 three words of a text, 4 + 5; " * 400

    def work() -> None:
        sum(len(found.group()) for found in re.finditer(r"(?<!\w)(\w+)\s*=\s*(\d+)|\b(?:one|two|three)\b", line))
        sum(i * i % 7 for i in range(20_000))

    return max(1.0, min(seconds(work) for _ in range(3)) / 0.0025)


def test_every_task_is_tried() -> None:
    assert {name for name, *_ in ROWS} | {"python_code"} == set(TASKS)


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 50))])
@pytest.mark.few(4)
def test_random_texts_never_make_a_check_raise_or_take_it_long(seed: int) -> None:
    random_, known = random.Random(seed), parts()
    for _ in range(100):
        joint = random_.choice(["", " ", " ", "\n"])
        chosen = random_.choices(random_.sample(known, random_.randint(1, 12)), k=random_.randint(1, 60))
        assert not slow(joint.join(chosen))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.few(3)
def test_bytes_and_characters_of_any_kind_never_make_a_check_raise(seed: int) -> None:
    random_ = random.Random(seed)
    for _ in range(100):
        text = "".join(
            chr(random_.choice([random_.randrange(32, 127), random_.randrange(0xD800), 10])) for _ in range(80)
        )
        judge(text)


def some(texts: list[str], each: int) -> list[Any]:
    """Return one of so many texts for the default tests, and the others for the slow ones."""
    return [text if not i % each else pytest.param(text, marks=pytest.mark.slow) for i, text in enumerate(texts)]


@pytest.mark.parametrize("part", some(list(dict.fromkeys(parts())), 3), ids=repr)
@pytest.mark.few(6)
def test_no_part_over_and_over_takes_long(part: str) -> None:
    assert not slow(part * (LENGTH // len(part.encode("utf-8", "replace"))))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_no_mixture_of_two_parts_over_and_over_takes_long(seed: int) -> None:
    random_, known = random.Random(seed), parts()
    found = []
    for _ in range(12):
        pair = "".join(random_.sample(known, 2)) + random_.choice(["", " "])
        text = pair * (LENGTH // len(pair.encode("utf-8", "replace")))
        found += [(pair, *each) for each in slow(text)]
    assert not found


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
    assert not slow(text)


#: Openings that nothing closes: of calls, tags, quotes, formulas, verdicts, denials.
OPENINGS = """
call:f{ call:f{a:1, call:f{<escape> <escape> ```json [CALL_ID]json <arg_key>a</arg_key><arg_value> <!-- ~~f(
<del> \\overline{ \\frac{a}{ 0.( 1.\\bar :'{ {, "\\"', >~>>~ ```python~x= Not~A,~ A~seems~right~but~
between~A~and~B,~ Step~1:~ (1)~ no~doubt~ the~answer~can't~be~ n't~be~anything~but~ if~I~had~ wrong:~f(x=1)~
half~of~ 12~to~ {2,5} roots~are~ as~the~expert~ I~cannot~ a~solution~above~ i'm~an~ai~and~ the~ hmm~
"""


@pytest.mark.parametrize("opening", some(OPENINGS.split(), 2), ids=repr)
@pytest.mark.few(5)
def test_no_cut_off_opening_over_and_over_takes_long(opening: str) -> None:
    part = opening.replace("~", " ")
    for text in ((part * LENGTH)[:LENGTH], (part * 3_200)[:3_200].strip() + "\n" + part):
        assert not slow(text)


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
        threads = [threading.Thread(target=lambda: [judge("f(x='\\d') " * 20) for _ in range(20)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before
        warnings.warn("still heard", UserWarning, stacklevel=1)
    assert "still heard" in [str(each.message) for each in heard]
