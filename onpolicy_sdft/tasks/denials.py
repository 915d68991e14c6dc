"""Whether a text takes back what it mentions: "not B", "B is wrong", "B?"."""

from __future__ import annotations

import re

#: What has the words of a negation and is none: "there is no doubt that it is B", "none other than B".
_AFFIRMED = re.compile(
    r"\b(?:(?:no|without(?: a| any)?|beyond(?: a| any| all)?)(?: shadow of a)? (?:doubt|question)"
    r"|(?:none|no(?:thing|body)?|no one)(?: other| else)? (?:than|but)|(?:not|isn['’]t) (?:only|just|merely|simply)"
    r"|(?:not|never|cannot|\w+n['’]t) be any(?:thing|one|where)?(?: other| else)? (?:than|but)"
    r"|(?:not|never|cannot|can['’]t|don['’]t|no one can) (?:doubt|deny|dispute)|not (?:wrong|incorrect|unlikely))\b",
    re.IGNORECASE,
)
_NEGATION = re.compile(
    r"(?:\b(?:not|never|neither|nor|isn['’]t|aren['’]t|wasn['’]t|wouldn['’]t|won['’]t|don['’]t|doesn['’]t|didn['’]t"
    r"|can['’]?t|cannot|couldn['’]t|shouldn['’]t|except|excluding|without|eliminate[sd]?|exclude[sd]?"
    r"|reject(?:ed|s)?|avoid|doubt(?:s|ed|ful)?|hardly|scarcely|unlikely|impossible|disagree[sd]?|den(?:y|ies|ied)"
    r"|dismiss(?:ed)?|discard(?:ed)?|false that|wrong that|incorrect that"
    r"|no (?:circumstances|reason|way|need|point|evidence|chance)"
    r"|nicht|niemals|pas|jamais|nunca|não|no es|non è|не)\b"
    r"|\b(?:rul(?:e|ed|es|ing)|cross(?:ed|es|ing)?|strik(?:e|es|ing)|struck|scratch(?:ed|es|ing)?|throw(?:s|n|ing)?"
    r"|threw|leav(?:e|es|ing)|left|toss(?:ed|es|ing)?) out\b|\b(?:get|got|getting) rid of\b"
    r"|\b(?:discount|disqualify|disqualified)\b"
    r"|\b(?:rather than|instead of|other than|no longer|anything but|all but|far from|by no means)\b)"
    r"(?:\s+[\w'’]+){0,4}\W*$|\bno\s+(?:option\s+|choice\s+)?[(\"']*$"
    r"|(?:不是|不选|不為|不为|并非|不會是|不会是|排除|错误的是)\s*$",
    re.IGNORECASE,
)
#: What is the wrong one is not picked: "the least likely answer is A", "Wrong: A".
_WRONG = re.compile(
    r"(?:\b(?:wrong|incorrect|worst|false|eliminated|excluded|ruled out|(?:least|less) \w+)|[✗✘❌✖])"
    r"(?:[^\S\n]+(?:one|option|choice|answer))?(?:[^\S\n]+(?:is|are|would be))?[^\S\n]*:?[^\S\n]*"
    r"(?:the[^\S\n])?[(\"']*$",
    re.IGNORECASE,
)
_TURN = re.compile(r"\b(?:but|instead(?! of))\b|[,.:;]", re.IGNORECASE)
_ALL_BUT = re.compile(r"\b(?:(?:any|every)(?:thing|one|body|where)?|all) but\W*$", re.IGNORECASE)
_BAD = (
    r"(?:(?:the |an? )?"
    r"(?:wrong|incorrect|false|invalid|impossible|unlikely|doubtful|mistaken|absurd|nonsense|mistake)\b"
    r"|out\b|ruled out|eliminated|excluded|rejected|dismissed|discarded"
    r"|(?:the )?(?:least|less) (?:likely|plausible|probable|suitable|appropriate|accurate)\b)"
)
_AUXILIARY = r"(?:is|are|was|were|seems?|looks?|can|could|would|should|does|do|did|must|may|might|has|have|sounds?)"
_ADVERBS = r"(?:(?:all|both|also|clearly|definitely|probably|certainly|obviously|just|simply|almost|most) )?"
#: "B is not wrong", "B can't be wrong", "B is not only plausible".
_NOT_DENIED = (
    r"(?!(?:\w+(?:[ ]not|n['’]t|[ ]never)|cannot|can['’]t|can never)(?: be)?"
    r" (?:wrong|incorrect|false|mistaken|doubted|denied|only|just|merely|simply)\b(?! (?:wrong|incorrect)))"
)
_DENIED_AFTER = re.compile(
    r"[)\]\"'.:*]*[^\S\n]*(?:\?|[✗✘❌✖]"
    rf"|{_NOT_DENIED}(?:{_AUXILIARY}\s*(?:to\s+)?(?:be\s+|been\s+)?{_ADVERBS}"
    rf"(?:not\b|n['’]t\b|never\b|far from\b|anything but\b|hardly\b|{_BAD})"
    r"|(?:isn|aren|wasn|can|couldn|doesn|don|won|wouldn|shouldn)['’]t\b|cannot\b|makes? (?:no|little) sense"
    r"|(?:ist|est|es|è|é|неверно|не)\s*(?:falsch|nicht|fau(?:x|sse)|incorrect[aeo]?|errad[ao]|sbagliat[ao]|верно|pas)\b)"
    r"|(?:是|为)?(?:错|不对|不正确|不是)|では(?:ありません|ない)|じゃない|[은는이가] (?:아니|아닙|틀))",
    re.IGNORECASE,
)
#: "5 are wrong" counts them.
_ONE_IS = r"(?:is|was|seems|looks|could|would|should|must|may|might|does|has)|(?:ca|wo)(?=n['’]t)"
#: What makes a number the wrong one behind it; "5?" and "5 is not even" do not.
_RESULT = r"(?:(?:the|my|our|a|its) )?(?:right|correct|final|actual|true|real|required|desired)?\s*"
_NOT_IT = (
    rf"(?:{_BAD}|too (?:large|small|big|high|low|many|much|few)\b"
    rf"|(?:not?|n['’]t|never|cannot|hardly)\s+(?:be\s+)?{_RESULT}"
    r"(?:answer|result|solution|right|correct|true|possible|it|valid)\b)"
)
_NUMBER_DENIED_AFTER = re.compile(
    rf"(?:[ ][^\W\d_]+){{0,2}}?[)\]\"'*]*(?:[.,;!]|\s-)?\s*(?:(?:but|yet|which|and)\s+)?(?:(?:that|it|this)\s?)?"
    rf"(?:(?:['’]s|\b(?:{_ONE_IS}))\s*(?:be\s+)?{_ADVERBS}{_NOT_IT}|\bcan ?not be {_RESULT}"
    r"(?:answer|result|right|correct)"
    r"|makes? (?:no|little) sense|\((?:wrong|incorrect|false)\))",
    re.IGNORECASE,
)
#: What denies a statement: "I don't think that the answer is", "it is false that the answer is".
_DENIES_STATEMENT = re.compile(
    r"(?:(?:\bnot|\bnever|n['’]t)\s+(?:\w+\s+)?"
    r"(?:think|believe|say|claim|agree|mean|true|correct|right|likely|possible|sure|certain)"
    r"|\b(?:doubt|disagree|deny|false|wrong|incorrect|untrue|unlikely|impossible|a mistake)\b)"
    r"(?:\s+(?:that|to|with|say|think|claim|if|whether|the|my|your|this|final|correct|right|it|it['’]s|is)){0,6}\s*$",
    re.IGNORECASE,
)
#: At the end of a marker: "the answer cannot be".
_DENIES_WHAT_FOLLOWS = re.compile(
    r"(?:\b(?:not|cannot|never|can['’]?t|hardly)|n['’]t)\s+(?:\w+\s+)?(?:be|equal)\s*:?\s*$", re.IGNORECASE
)
_NEXT_SENTENCE = re.compile(r"[)\]\"'*]*\.[)\]\"'*]*\s+[A-Z]")
_WINDOW = 60  # characters on each side that are read


def speaks_against(words: str) -> bool:
    """Whether the words before something say that it is not the one."""
    words = _AFFIRMED.sub("", words)
    return _NEGATION.search(words) is not None or _WRONG.search(words) is not None


def denies_number(before: str, marker: str) -> bool:
    """Whether a marker of an answer, or what stands before it, says that what follows is not the answer."""
    before = _AFFIRMED.sub("", before[-_WINDOW:].rpartition("\n")[2])
    return _DENIES_STATEMENT.search(before) is not None or _DENIES_WHAT_FOLLOWS.search(marker) is not None


def is_number_denied_after(text: str, end: int) -> bool:
    """Whether what stands behind a number says that it is the wrong one."""
    return _NUMBER_DENIED_AFTER.match(text, end, end + _WINDOW) is not None


def is_denied_before(text: str, start: int) -> bool:
    """Whether what begins at ``start`` is taken back by what stands before."""
    before = _AFFIRMED.sub("", text[max(0, start - _WINDOW) : start])
    found = _NEGATION.search(re.split(r"[.!?;]\s|\n", before)[-1])
    if found and not _TURN.search(found.group()):
        return True
    return any(pattern.search(before) is not None for pattern in (_ALL_BUT, _WRONG))


def is_denied_after(text: str, end: int) -> bool:
    """Whether what ends at ``end`` is taken back by what stands behind."""
    # "A. Is not ..." begins another sentence.
    return _DENIED_AFTER.match(text, end, end + _WINDOW) is not None and not _NEXT_SENTENCE.match(text, end)
