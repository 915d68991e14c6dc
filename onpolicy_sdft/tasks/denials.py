"""Whether a text takes back what it mentions: "not B", "B is wrong", "B?"."""

from __future__ import annotations

import re

_NEGATION = re.compile(
    r"(?:\b(?:not|never|neither|nor|isn['’]t|aren['’]t|wasn['’]t|wouldn['’]t|won['’]t|don['’]t|doesn['’]t|didn['’]t"
    r"|can['’]?t|cannot|couldn['’]t|shouldn['’]t|except|excluding|without|eliminate[sd]?|exclude[sd]?"
    r"|reject(?:ed)?|avoid|doubt|hardly|no circumstances)\b"
    r"|\brul(?:e|ed|es|ing) out\b|\b(?:rather than|instead of|other than|no longer|anything but|all but)\b)"
    r"(?:\s+[\w'’]+){0,4}\W*$",
    re.IGNORECASE,
)
#: What is the wrong one is not picked: "the least likely answer is A", "Wrong: A".
_WRONG = re.compile(
    r"(?:\b(?:wrong|incorrect|worst|false|eliminated|excluded|ruled out|(?:least|less) \w+)|[✗✘❌])"
    r"(?:\s+(?:one|option|choice|answer))?(?:\s+(?:is|are|would be))?\s*:?\s*[(\"']*$",
    re.IGNORECASE,
)
_TURN = re.compile(r"\b(?:but|instead)\b|[,.:;]", re.IGNORECASE)
_ALL_BUT = re.compile(r"\b(?:anything|everything|all|any) but\W*$", re.IGNORECASE)
_DENIED_AFTER = re.compile(
    r"[)\]\"'.:*]*\s*(?:\?|(?:(?:is|are|was|were|seems?|looks?|can|could|would|does|do|must)\s*(?:be\s+)?(?:both\s+|also\s+"
    r"|clearly\s+|definitely\s+|probably\s+)?(?:not\b|n['’]t\b|never\b|wrong|incorrect|false|out\b|ruled out|eliminated"
    r"|excluded|impossible|unlikely|doubtful)|(?:isn|aren|wasn|can|couldn|doesn|don|won)['’]t\b|cannot\b))",
    re.IGNORECASE,
)
_WINDOW = 60  # characters on each side that are read


def speaks_against(words: str) -> bool:
    """Whether the words before something say that it is not the one."""
    return _NEGATION.search(words) is not None or _WRONG.search(words) is not None


def is_denied_before(text: str, start: int) -> bool:
    """Whether what begins at ``start`` is taken back by what stands before."""
    before = text[max(0, start - _WINDOW) : start]
    found = _NEGATION.search(re.split(r"[.!?;\n]\s", before)[-1])
    if found and not _TURN.search(found.group()):
        return True
    return any(pattern.search(before) is not None for pattern in (_ALL_BUT, _WRONG))


def is_denied_after(text: str, end: int) -> bool:
    """Whether what ends at ``end`` is taken back by what stands behind."""
    return _DENIED_AFTER.match(text, end, end + _WINDOW) is not None
