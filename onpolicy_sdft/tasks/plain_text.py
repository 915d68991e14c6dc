r"""What a model writes around an answer: thoughts, LaTeX and Markdown, full-width letters.

Everything here is one pass or a fixed number of them: a check has to be done before the next text is written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

#: What stands between a model's thoughts and its answer, in the families that think aloud; special tokens are left out
#: of a decoded text, so that of gpt-oss only the words are left.
_END_OF_THOUGHTS = (
    "</think>",
    "</thinking>",
    "</thought>",
    "</reasoning>",
    "</seed:think>",
    "[/THINK]",
    "<|END_THINKING|>",
    "<|end_of_thought|>",
    "<channel|>",
    "[BEGIN FINAL RESPONSE]",
    "<|channel|>final<|message|>",
    "assistantfinal",
    "◁/think▷",
    "<end_working_out>",
)
_BEGIN = (
    r"<(?:seed:)?think>|<thinking>|<thought>|<reasoning>|\[THINK\]|<\|START_THINKING\|>|<\|begin_of_thought\|>|◁think▷"
    r"|<start_working_out>"
)
_BEGIN_OF_THOUGHTS = re.compile(_BEGIN)
#: What a text begins with that only thinks; of gpt-oss, a call may follow its thoughts without an end of them.
_THINKING = re.compile(
    rf"\s*(?:{_BEGIN}|<\|channel>thought\b"
    r"|(?:(?:<\|start\|>assistant)?<\|channel\|>analysis\b|analysis(?=[A-Z]))(?!.*\bto=))",
    re.DOTALL,
)

#: Words with which a text takes back what it has said.
CHANGED_MIND = re.compile(
    r"\b(?:wait|hold on|actually|correction|sorry|oops|(?:scratch|strike|make) that"
    r"|let me (?:re\w*|correct|fix|check again)"
    r"|no, (?:it|the|that|\d)|on (?:second thought|reflection)|h+m+|I mean|or rather|I take (?:it|that) back"
    r"|my (?:mistake|bad))\b|\?\s*no\b",
    re.I,
)

#: Where a model goes on with a question of its own, as in a list of examples.
NEXT_QUESTION = re.compile(
    r"\n[^\w\n]{0,8}(?:(?:(?:Next|New|Another) )?"
    r"(?:Q|Question|Problem|Exercise|Human|User|Instruction)[ ]?\d*[*_]{0,3}\s*:"
    r"|(?:(?:Question|Problem|Exercise|Instruction)[ ]?\d*[*_]{0,3}|user)(?=\n)"
    r"|(?<=\n\n)(?:Example[ ]?\d+|Input)\s*:)"
)

_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf|sc)?|math(?:rm|bf|it|sf|tt|bb|cal)|mbox|fbox|operatorname\*?|bm|boldsymbol|underline"
    r"|emph)\s*\{([^{}]*)\}"
)
_NUM_PASSES = 3  # of wrappers inside wrappers
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~|<(s|del|strike)>[^<\n]{0,200}</\1>")
_SPACING = re.compile(
    r"\\(?:[,;:! ]|left(?![a-z])|right(?![a-z])|quad(?![a-z])|qquad(?![a-z])|displaystyle(?![a-z])|[()\[\]])"
)
# Of every kind that is written for a minus; the long dash is punctuation.
#: Dashes and slashes that compatibility decomposition leaves.
_DASHES_AND_SLASHES = str.maketrans(dict.fromkeys("\u2010\u2012\u2013\u2212", "-") | dict.fromkeys("\u2044\u2215", "/"))
#: Letters and signs that show nothing.
_UNSEEN = "\u115f\u1160\u2800\u3164\uffa0"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")


def without_thoughts(text: str) -> str:
    """Return what stands behind the last thought of a text that has something behind it.

    That is nothing where a thought has no end.
    """
    end, start = _last_end(text)
    if not end:
        return "" if _THINKING.match(text) else text
    if text[end:].strip():
        return text[end:]
    before, _ = _last_end(text[:start])  # "<think>a</think>6<think>b</think>" says 6
    between = text[before:start] if before else ""
    thought = _BEGIN_OF_THOUGHTS.search(between)
    return between[: thought.start()] if thought else between


def _last_end(text: str) -> tuple[int, int]:
    """Return where the last end mark of thoughts ends and begins; 0 where there is none."""
    return max((place + len(mark), place) if (place := text.rfind(mark)) >= 0 else (0, 0) for mark in _END_OF_THOUGHTS)


def without_next_question(text: str, says: Callable[[str], object]) -> str:
    """Leave out what a model goes on to ask itself, where what stands before says an answer.

    Args:
        text: Without thoughts.
        says: Whether a text says an answer.
    """
    found = NEXT_QUESTION.search(text)
    before = text[: found.start()] if found else ""
    is_answer = before.strip() and not before.rstrip().endswith(":") and says(before)
    return before if is_answer else text


def is_blank(text: str) -> bool:
    """Whether a text says nothing behind its thoughts: it has nothing that can be seen."""
    return not any(unicodedata.category(each)[0] not in "CZ" for each in without_thoughts(text))


def is_unseen(text: str) -> bool:
    """Whether a text has nothing that can be seen: it is empty, or blanks and characters without a width alone."""
    return all(each.isspace() or each in _UNSEEN or unicodedata.category(each) in ("Cc", "Cf", "Zs") for each in text)


def without_struck(text: str) -> str:
    """Return a text without what is struck out in it: "~~A~~ B" says B."""
    return _STRUCK.sub(" ", text)


def without_wrappers(text: str) -> str:
    r"""Return a text with LaTeX commands that change looks alone undone, ``\text{A}`` and ``\left(`` among them."""
    text = _SPACING.sub(" ", text.replace(r"\!", "").replace(r"\,", "\u202f"))
    for _ in range(_NUM_PASSES):
        text = _WRAPPER.sub(r"\1", text)
    return text


def plain_characters(text: str) -> str:
    """Return a text with one spelling of each character: full-width ones, dashes, raised digits (as ``^2``)."""
    text = _RAISED.sub(lambda found: "^" + found.group().translate(_SUPERSCRIPTS), text)
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)  # 1½ is 1 1/2
    return unicodedata.normalize("NFKC", text).translate(_DASHES_AND_SLASHES)


def braced(text: str, start: int) -> str:
    """Return what stands in the braces whose opening one stands before ``start``, to the end where they are open."""
    depth = 1
    for found in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if found.group() == "{" else -1
        if not depth:
            return text[start : found.start()]
    return text[start:]
