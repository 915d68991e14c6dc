"""The acceptance rules of the ACL 2024 program, as they are, so that its data sets can be made again.

Known mistakes are part of them: numbers in a row are read as one ("3 4" is 34), two texts without a number agree,
a call must repeat the reference's arguments letter by letter, cut-off text passes, and code is judged by its first
words. The default rules of ``sdft distill`` have none of that.
Source: Yang et al. (ACL 2024), arXiv:2402.13669, and the program released with it (sail-sg/sdft).
"""

from __future__ import annotations

import re

from onpolicy_sdft.tasks.function_call import FunctionCall
from onpolicy_sdft.types import Demonstration

_BANNED = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
_NUMBER = re.compile(r"-?\d+(?:[,\s]\d+)*(?:\.\d+)?")
_NO_INTEGER = "-999999999"
_CODE_FENCE = "```python"
_CODE_STARTS = ("I have", "Here is", "I implemented")


def legacy_reason(text: str, demonstration: Demonstration, task_name: str) -> str:
    """Return why the ACL 2024 program would keep the original response: ``banned``, ``check``, or nothing.

    Args:
        text: The rewritten response.
        demonstration: Prompt and original response.
        task_name: ``math_word_problem``, ``function_call`` and ``python_code`` have a check; others pass.
    """
    text = text.strip()
    if any(phrase in text.lower() for phrase in _BANNED) or text.startswith("Your turn"):
        return "banned"
    return "" if legacy_agrees(text, demonstration, task_name) else "check"


def last_integer(text: str) -> str:
    """Return the digits of the last number of a text, or a sentinel where it is none or not whole."""
    numbers = _NUMBER.findall(text)
    number = numbers[-1].replace(",", "").replace(" ", "") if numbers else _NO_INTEGER
    whole, _, fraction = number.partition(".")
    return _NO_INTEGER if fraction and int(fraction) != 0 else whole


def legacy_agrees(text: str, demonstration: Demonstration, task_name: str) -> bool:
    """Return whether a text passes the ACL 2024 program's check against the original response.

    Raises:
        DataError: If the row lacks what the check compares with.
    """
    if task_name == "math_word_problem":
        try:
            return int(last_integer(demonstration.response.strip())) == int(last_integer(text))
        except ValueError:  # other white space between digits, which the program refuses too
            return False
    if task_name == "function_call":
        return FunctionCall(match="legacy", answer_field="").check(text, demonstration).correct
    if task_name == "python_code":
        return _CODE_FENCE in text and text.startswith(_CODE_STARTS)
    return True
