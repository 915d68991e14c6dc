"""Short Python functions over lists, each with tests and a demonstration that passes them.

A wording is a frame around a phrase of the behaviour. Train, validation and test share neither
frames nor phrases, and eight behaviours each of validation and test never occur in training
(``novel``).
"""

from __future__ import annotations

import random
import textwrap
from dataclasses import dataclass
from typing import Any

from onpolicy_sdft.data.generators.common import (
    SPLITS,
    check_choice,
    check_options,
    keyed_random,
    select_indices,
)
from onpolicy_sdft.data.generators.list_functions_catalogue import (
    HELD_OUT_TEST,
    HELD_OUT_VALIDATION,
    INPUTS,
    SEEN,
    Behaviour,
    Kind,
)

NAME = "list_functions"
STYLES = ("plain", "terse")
MAX_TESTS = 6

ARGUMENTS: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "numbers": (("nums",), ("numbers",), ("values",), ("items",), ("lst",), ("data",)),
    "words": (("words",), ("strings",), ("names",), ("word_list",)),
    "pair": (("a", "b"), ("first", "second"), ("left", "right"), ("list1", "list2")),
    "nested": (("rows",), ("lists",), ("groups",), ("nested",)),
}
TAKES: dict[Kind, str] = {
    "numbers": "a list of integers `{xs}`",
    "words": "a list of words `{xs}`",
    "pair": "two lists of integers `{xs}` and `{ys}`",
    "nested": "a list of lists `{xs}`",
}

# Slots: {sig} the call with its arguments, {fn} the name, {takes} the argument in words, {what} a
# noun phrase, {do} a verb phrase, {example} a sentence with one input and its output.
NOUN_FRAMES: dict[str, tuple[str, ...]] = {
    "train": (
        "Write a Python function `{sig}` that returns {what}.",
        "Can you write a Python function called `{fn}` that takes {takes} and returns {what}?",
        "I need a Python function `{sig}`. It should return {what}. {example}",
        "Implement `{sig}` in Python so that it returns {what}. {example}",
        "Given {takes}, write a Python function `{fn}` which returns {what}.",
        "Please write `{sig}`, a Python function returning {what}. {example}",
        "How would you write a Python function `{sig}` that gives back {what}?",
        "Define a Python function named `{fn}` with {takes} as input. It returns {what}.",
    ),
    "validation": (
        "Complete this Python task: `{sig}` must return {what}. {example}",
        "Write me some Python. The function is `{fn}`, it gets {takes}, and it returns {what}.",
        "What is a simple way to write `{sig}` in Python if it has to return {what}?",
        "Please code a function `{sig}` in Python whose result is {what}. {example}",
    ),
    "test": (
        "Create a Python function `{sig}` whose return value is {what}.",
        "{example} In general `{sig}` returns {what}. Write this function in Python.",
        "Help me with a Python exercise: for {takes}, `{fn}` should return {what}.",
        "Could you show me a function `{sig}` in Python which returns {what}? {example}",
    ),
}
VERB_FRAMES: dict[str, tuple[str, ...]] = {
    "train": (
        "Write a Python function `{sig}` to {do} and return the result.",
        "I want to {do}. Write a Python function `{sig}` that does this and returns the result.",
        "Can you implement `{sig}` in Python? It should {do} and return the result. {example}",
        "Write a function `{fn}` in Python. It takes {takes}. Its job is to {do} and return the result.",
        "Please help me {do}: write a Python function `{sig}` that returns the answer. {example}",
        "Your task, in Python, is to {do}. Name the function `{fn}`, let it take {takes}, and "
        "return the result. {example}",
        "Give me a short Python function, `{sig}`, that I can call to {do}. It must return the result.",
        "Python question: how do I {do}? Answer with a function `{sig}` that returns the result.",
    ),
    "validation": (
        "Make a Python function `{sig}` that can {do}, and have it return the outcome.",
        "For my script I have to {do}. Please write `{sig}` in Python; it returns the outcome. {example}",
        "Take {takes} and {do}. Do it in a Python function called `{fn}` that returns the outcome.",
        "{example} As you see, `{sig}` is to {do} and return the outcome. Write it in Python.",
    ),
    "test": (
        "Let's {do}. Provide a Python function `{sig}` and return what you get.",
        "Show me Python code for `{sig}`, which has to {do} and return what it gets. {example}",
        "My homework is to {do} with a Python function. Call it `{fn}`, give it {takes}, and return what you get.",
        "Using Python, {do}. The function must be `{sig}` and return its result. {example}",
    ),
}
EXAMPLES: dict[str, tuple[str, ...]] = {
    "train": (
        "For example, `{call}` returns `{value}`.",
        "For instance, `{call}` should give `{value}`.",
        "Example: `{call}` -> `{value}`.",
    ),
    "validation": ("So `{call}` is `{value}`.", "A call like `{call}` produces `{value}`."),
    "test": ("When I call `{call}`, I expect `{value}`.", "`{call}` evaluates to `{value}`."),
}
OPENINGS = (
    "Here is a Python function that returns {what}:",
    "Here's a function that returns {what}:",
    "You can use the following function. It returns {what}.",
    "This function returns {what}:",
)


@dataclass(frozen=True)
class Request:
    """One way to ask for one behaviour."""

    behaviour: Behaviour
    phrase: str
    frame: str
    novel: bool  # the behaviour never occurs in training


def generate(*, split: str, limit: int | None, seed: int, **options: Any) -> list[dict[str, Any]]:
    """Rows that ask for a list function.

    Args:
        split: ``train``, ``validation`` or ``test``.
        limit: Number of rows; None for all.
        seed: Chooses which rows come first; an id names the same row whatever the seed.
        options: ``style``: ``plain`` (default), a sentence and a fenced function; or ``terse``, a
            bare one-line lambda, a style foreign to a chat model.

    Returns:
        Rows with ``id``, ``prompt``, ``response``, ``tests`` (assert statements), ``function``,
        ``behaviour`` and ``novel`` (the behaviour never occurs in training).

    Raises:
        DataError: A bad split, limit, seed or option.
    """
    check_choice(NAME, "split", split, SPLITS)
    check_options(NAME, options, ("style",))
    style = options.get("style", "plain")
    check_choice(NAME, "style", style, STYLES)
    requests = _requests(split)
    order = select_indices(NAME, split=split, available=len(requests), limit=limit, seed=seed)
    return [_row(requests[index], split, index, style) for index in order]


def _requests(split: str) -> list[Request]:
    """Every request of a split in a fixed order."""
    requests = []
    for number, behaviour in enumerate(SEEN):
        # Validation and test get one unseen phrase each; taking turns, both see nouns and verbs.
        held_out = {"validation": number % 2 == 0, "test": number % 2 == 1}
        if split == "train" or held_out[split]:
            noun = behaviour.nouns[0 if split == "train" else 1]
            requests += [Request(behaviour, noun, f, False) for f in NOUN_FRAMES[split]]
        if split == "train" or not held_out[split]:
            verb = behaviour.verbs[0 if split == "train" else 1]
            requests += [Request(behaviour, verb, f, False) for f in VERB_FRAMES[split]]
    unseen = {"train": (), "validation": HELD_OUT_VALIDATION, "test": HELD_OUT_TEST}[split]
    for behaviour in unseen:
        for noun in behaviour.nouns:
            requests += [Request(behaviour, noun, f, True) for f in NOUN_FRAMES[split]]
        for verb in behaviour.verbs:
            requests += [Request(behaviour, verb, f, True) for f in VERB_FRAMES[split]]
    return requests


def _row(request: Request, split: str, index: int, style: str) -> dict[str, Any]:
    """The row of one request; everything but the style is a function of split and index."""
    behaviour = request.behaviour
    rng = keyed_random(NAME, split, index)
    function = rng.choice(behaviour.names.split())
    arguments = rng.choice(ARGUMENTS[behaviour.kind])
    param = behaviour.params[index % len(behaviour.params)]
    slots = _slots(behaviour, arguments, param, rng.randrange(3))
    solve = _solution(behaviour, arguments, slots)
    cases = _cases(behaviour, solve, rng)
    call, value = _call(function, cases[-1]), repr(solve(*cases[-1]))
    prompt = request.frame.format(
        fn=function,
        sig=f"{function}({', '.join(arguments)})",
        takes=TAKES[behaviour.kind].format(**slots),
        what=request.phrase.format(**slots),
        do=request.phrase.format(**slots),
        example=rng.choice(EXAMPLES[split]).format(call=call, value=value),
    )
    what = behaviour.nouns[0].format(**slots)
    opening = rng.choice(OPENINGS).format(what=what)
    return {
        "id": f"{NAME}-{split}-{index:04d}",
        "prompt": prompt,
        "response": _response(behaviour, function, arguments, slots, opening, style),
        "tests": [f"assert {_call(function, case)} == {solve(*case)!r}" for case in cases[:-1]],
        "function": function,
        "behaviour": behaviour.key,
        "novel": request.novel,
    }


def _slots(behaviour: Behaviour, arguments: tuple[str, ...], param: Any, variant: int) -> dict[str, str]:
    """Values of the slots in phrases and code."""
    if behaviour.kind == "pair":
        both = f"`{arguments[0]}` and `{arguments[1]}`"
        named = ("the two lists", both, f"the lists {both}")
    else:
        named = ("the list", f"`{arguments[0]}`", f"the list `{arguments[0]}`")
    k, code = param if isinstance(param, tuple) else (str(param), str(param))
    kth = {"2": "second", "3": "third"}.get(k, f"{k}th")
    return {
        "xs": arguments[0],
        "ys": arguments[-1],
        "L": named[variant],
        "k": k,
        "kth": kth,
        "code": code,
    }


def _solution(behaviour: Behaviour, arguments: tuple[str, ...], slots: dict[str, str]) -> Any:
    """The behaviour as a callable.

    The expression is a literal of this package, so that evaluating it runs no foreign code.
    """
    return eval(f"lambda {', '.join(arguments)}: {behaviour.expr.format(**slots)}")


def _cases(behaviour: Behaviour, solve: Any, rng: random.Random) -> list[tuple[Any, ...]]:
    """Inputs of the tests, and last the one of the example: varied results, edge cases included."""
    pool = list(behaviour.inputs or INPUTS[behaviour.kind])
    rng.shuffle(pool)
    fresh, repeated = [], []
    results: list[Any] = []
    for case in pool:
        result = solve(*case)
        # A result seen before, or equal to the input, tells fewer wrong answers apart.
        if result in results or result == case[0]:
            repeated.append(case)
        else:
            fresh.append(case)
            results.append(result)
    ranked = fresh + repeated
    empty: tuple[Any, ...] = ([], []) if behaviour.kind == "pair" else ([],)
    edges = [empty] if behaviour.empty else []
    # An empty result explains nothing.
    example = next(case for case in ranked if solve(*case) != [])
    tests = [case for case in ranked if case is not example]
    # The example may hold the only True, say: put another case like it in the tests.
    alike = [case for case in tests if solve(*case) == solve(*example)][:1]
    tests = alike + [case for case in tests if case not in alike]
    return tests[: MAX_TESTS - 1 - len(edges)] + edges + [example]


def _call(function: str, case: tuple[Any, ...]) -> str:
    return f"{function}({', '.join(repr(value) for value in case)})"


def _response(
    behaviour: Behaviour,
    function: str,
    arguments: tuple[str, ...],
    slots: dict[str, str],
    opening: str,
    style: str,
) -> str:
    signature = ", ".join(arguments)
    expression = behaviour.expr.format(**slots)
    if style == "terse":
        return f"{function} = lambda {signature}: {expression}"
    body = (behaviour.body or "return {expr}").format(expr=expression, **slots)
    code = f"def {function}({signature}):\n{textwrap.indent(body, '    ')}"
    return f"{opening}\n\n```python\n{code}\n```"
