"""Which of the listed options a text picks, as a reader would say.

A text mentions options: by letter where it stands as one ("(B)", "option B", "B."), or by their words. A mention may be
taken back ("not B", "B is wrong", "B?"). The one option that is mentioned and not taken back is picked; two are none.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, takewhile

from onpolicy_sdft.tasks.denials import is_denied_after, is_denied_before, speaks_against
from onpolicy_sdft.tasks.plain_text import (
    CHANGED_MIND,
    braced,
    plain_characters,
    without_next_question,
    without_thoughts,
    without_wrappers,
)

_MARKER = re.compile(
    r"\\boxed\s*\{|<answer>|\#{4}"
    r"|\b(?:answer|choice|option|solution|antwort|respuesta|réponse|resposta|risposta)\b"
    r"(?:\s+(?:to|for)\s[^\n.:=]{0,40}?|\s+(?:here|i\s+\w+))?\s*"
    r"(?:\b(?:is|would be|should be|must be|has to be|will be|ist|es|est|é|è)\b|[:=：])(?:\s*[:：])?"
    r"|(?:答案|答え)(?:是|为|は)?\s*[:：]?"
    r"|(?:^|(?<=[.!?]\s)|(?<=\n))(?:so|therefore|thus|hence|in conclusion)\b,?",
    re.IGNORECASE,
)
#: What follows explains the pick; the options it names are not picked.
_EXPLAINS = re.compile(
    r"\b(?:because|since|as (?:it|the|they|this|that|he|she|all|only)|which|who|where|while|whereas|although|though"
    r"|due to|given that|for (?:the|its)|unlike|compared|so that|even)\b"
    r"|;(?!\s*(?:maybe|perhaps|possibly|or|and|also)\b|\s*\(?[A-Z]\b)|—",
    re.IGNORECASE,
)
#: What may stand between the end of a sentence and the marker of the next: "The answer is A. The answer is B."
_LEADS_ON = re.compile(r"\s*(?:so|thus|and|the|my|final|correct|right|,|\s)*", re.IGNORECASE)
#: What a line says of the option it begins with.
_VERDICT = re.compile(
    r"\W{0,8}(?:(?:this|it) (?:is|option is)|is|option)?\W{0,4}"
    r"(?:(?P<right>[✅✓✔☑]|(?:correct|right|yes|true)\b)"
    r"|[❌✗✘✖☒]|(?:incorrect|wrong|no|false|not (?:correct|right|true))\b)",
    re.IGNORECASE,
)
#: What is named before "but" is not picked where its clause has one of these: "A seems right, but it is B".
_TENTATIVE = re.compile(
    r"\b(?:thought|seem(?:s|ed)?|look(?:s|ed)?|appear(?:s|ed)?|might|may|could|tempt\w+|considered|guess(?:ed)?|first"
    r"|initially|plausible|close|almost|common|many|some|people|says?|said)\b",
    re.IGNORECASE,
)
_BUT = re.compile(r"\b(?:but|however|yet)\b", re.IGNORECASE)
_BETWEEN = re.compile(r"\b(?:between|of|out of|from) (?:options? )?\W*$", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)|\n+")
_OPTION_WORD = re.compile(
    r"(?:\b(?:options?|choices?|answers?|letters?|pick|choose|chose|select|selected|say|with|for|is|be|was|it|to)"
    r"|['’]s)\s*:?\s*[\"'(]*$",
    re.IGNORECASE,
)
#: Behind a lone capital that is a word as well ("A", "I"): then it is a letter.
_AFTER_LETTER = re.compile(
    r"\s*(?:$|[\u2e80-\uffff]|[().,:;\]\"'!?*/&+]|(?:is|and|or|because|since|as|for|with|but|not|would|seems|looks|,)\b|[A-Z]\b)"
)
_NAMED_BY_LETTER = re.compile(
    r"\b(?:vitamin|plan|type|hepatitis|grade|class|group|team|point|line|angle|figure|part) $", re.IGNORECASE
)
_LATIN = r"0-9A-Za-z_\u00aa-\u2e7f"  # in scripts without blanks a letter may stand beside words: 选B
_LISTED = re.compile(r"[)\]\"']*\s*(?:,|/|&|,?\s*(?:and|or|nor))?\s*(?:options?\s+)?[(\[\"']*", re.IGNORECASE)
_WINDOW = 60
_LETTER_AND_POINT = 5
_MAX_MARKERS = 8  # that are looked at, from the last one back
_READ_FOR_MARKERS = 16_000  # characters at the end of a text
_MAX_LINES, _MAX_MENTIONS = 200, 50  # of a text; one with more picks none


@dataclass(frozen=True, slots=True)
class _Mention:
    label: str
    start: int
    end: int


def chosen_label(text: str, choices: Mapping[str, str]) -> str | None:
    """Return the label of the one option a text picks, by letter or by the option's words.

    What stands behind the last marker ("the answer is", "answer:", a box) decides, else what the text says first or in
    its last sentence, else the whole text. What explains a pick is not read. A text that names two options, takes its
    pick back, or has a letter with another option's words picks none.

    Args:
        text: A completion.
        choices: Options by label.

    Returns:
        The label, or None.
    """
    text = without_next_question(
        _readable(without_thoughts(text)), lambda before: _MARKER.search(before) or _chosen(before, choices)
    )
    return _chosen(text, choices)


def states_choice(text: str) -> bool:
    """Whether a text marks its pick as one, or is little more than it."""
    text = without_thoughts(text).strip()
    return len(text) <= _WINDOW or _MARKER.search(text) is not None


def _chosen(text: str, choices: Mapping[str, str]) -> str | None:
    markers = list(_MARKER.finditer(text, max(0, len(text) - _READ_FOR_MARKERS)))
    if not markers:
        return _picked_in_all(text, choices)
    markers = markers[-_MAX_MARKERS:]
    if _contradicts(text, markers, choices):
        return None
    while markers:
        picked, is_said = _behind_marker(text, markers, choices)
        if is_said:
            return picked
        markers.pop()  # "Hope this answer is helpful!" says nothing about the marker before
    return None


def _contradicts(text: str, markers: Sequence[re.Match[str]], choices: Mapping[str, str]) -> bool:
    """Whether two answers stand right behind each other: "Answer: A", "Answer: B"."""
    if len(markers) < 2 or not text[markers[-1].end() :].strip():
        return False
    between = text[markers[-2].end() : markers[-1].start()]
    said_first, _, rest = between.rstrip(" ").rpartition("\n" if between.endswith("\n") else ".")
    if len(said_first) > _LETTER_AND_POINT + max(map(len, choices.values())) or not _LEADS_ON.fullmatch(rest):
        return False
    said, other = _picked(between, choices, is_stated=True)[0], _behind_marker(text, markers[-1:], choices)[0]
    return None not in (said, other) and said != other


def _behind_marker(text: str, markers: Sequence[re.Match[str]], choices: Mapping[str, str]) -> tuple[str | None, bool]:
    """Return what the last marker of a text states, and whether it states anything about the options."""
    last = markers[-1]
    is_box = last.group().startswith("\\")
    stated = braced(text, last.end()) if is_box else text[last.end() :].partition("</answer>")[0]
    by_words = _by_words_alone(stated, choices)
    if by_words is not None:
        return by_words, True
    if is_box and len(markers) > 1 and markers[-2].group().startswith("\\"):
        between = text[markers[-2].end() : last.start()]
        if not re.search(r"[.!?\n]", between):
            stated = f"{between.replace('}', ' ', 1)} {stated}"  # \boxed{A} or \boxed{B}
    # "I would not say the answer is A" speaks of the marker itself.
    before = text[max(0, last.start() - _WINDOW) : last.start()].split("\n")[-1]
    is_denied = speaks_against(before)
    sentences = _SENTENCE.split(stated.strip(), maxsplit=_MAX_LINES)
    if len(sentences) > 1 and _by_words_alone(sentences[1], choices) and len(sentences[0]) <= _LETTER_AND_POINT:
        sentences[:2] = [" ".join(sentences[:2])]  # "B. London" is one
    for place, sentence in enumerate(sentences):
        picked, is_said = _picked(sentence, choices, is_stated=True)
        if is_said:
            rest = " ".join(sentences[place + 1 :])
            return (None if is_denied or _is_corrected(rest, picked, choices) else picked), True
    return None, False


def _is_corrected(text: str, picked: str | None, choices: Mapping[str, str]) -> bool:
    """Whether a text changes its mind and goes on to another option: "No, wait, B"."""
    doubt = CHANGED_MIND.search(text)
    if doubt is None:
        return False
    other, is_said = _picked(text[doubt.end() :], choices, is_stated=False)
    return is_said and other != picked


def plain(text: str) -> str:
    """Return the words of an option as they are compared."""
    text = " ".join(text.replace("*", "").split()).casefold()
    # A sign belongs to a number; an option that is all punctuation stays itself.
    return text.strip(string.punctuation.replace("-", "").replace("+", "") + " ") or text


def _words_of(option: str) -> str:
    return plain(_readable(option)) or plain(option)


def _readable(text: str) -> str:
    text = plain_characters(without_wrappers(text))
    text = re.sub(r"[*`$]|(?<!\w)_|_(?!\w)", "", text)
    return "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())


def _by_words_alone(text: str, choices: Mapping[str, str]) -> str | None:
    """Return the label of the option a text is, word for word: an option may itself be the word "A"."""
    words = plain(text)
    if not words or text.rstrip().endswith("?"):
        return None
    found = [label for label, option in choices.items() if _words_of(option) == words]
    return found[0] if len(found) == 1 else None


def _picked_in_all(text: str, choices: Mapping[str, str]) -> str | None:
    """Return what a text without a marker picks."""
    by_words = _by_words_alone(text, choices)
    if by_words is not None:
        return by_words
    lines = [line for line in text.split("\n") if line.strip()][:_MAX_LINES]
    listed = [_restated(line, choices) for line in lines[: len(choices)]]
    if listed == list(choices) and len(lines) > len(choices):  # the question's list, and then the pick
        return _picked_in_all("\n".join(lines[len(choices) :]), choices)
    if verdicts := _verdicts(lines, choices):
        return verdicts[0] if len(verdicts) == 1 else None
    leading = [line for line in lines if _leads(line, choices)]
    if leading and leading[0] == lines[0]:
        if len(leading) > 1:  # it lists the options again
            labels = {_picked(line, choices, is_stated=True)[0] for line in leading}
            return labels.pop() if len(labels) == 1 else None
        return _picked(lines[0], choices, is_stated=True)[0]
    return _picked(text, choices, is_stated=False)[0]


def _verdicts(lines: Sequence[str], choices: Mapping[str, str]) -> list[str]:
    """Return the options that are called right where a text goes through them, one a line: "A: No", "B: Yes"."""
    found = dict[str, bool]()
    for line in lines:
        label = re.match(rf"\W{{0,8}}(?:[Oo]ption )?({_either(choices)})\b", line)
        if label is None:
            continue
        rest = re.sub(rf"^\W{{0,8}}{re.escape(choices[label[1]])}", "", line[label.end() :], flags=re.IGNORECASE)
        if verdict := _VERDICT.match(rest):
            found[label[1]] = found.get(label[1], False) or verdict["right"] is not None
    return [label for label, is_right in found.items() if is_right] if len(found) > 1 else []


def _restated(line: str, choices: Mapping[str, str]) -> str | None:
    """Return the label of the option that a line repeats word for word, with its letter."""
    found = re.match(rf"\W{{0,8}}({_either(choices)})\b\W{{0,8}}(.*)", line)
    return found[1] if found and plain(found[2]) == _words_of(choices[found[1]]) else None


def _leads(line: str, choices: Mapping[str, str]) -> bool:
    """Whether a line begins with a letter that is set off from what follows."""
    return re.match(rf"\s*[(\[\"']?(?:{_either(choices)})(?:[)\]}}\"'.:,]|\s*$)", line, re.IGNORECASE) is not None


def _picked(text: str, choices: Mapping[str, str], is_stated: bool) -> tuple[str | None, bool]:
    """Return the one option that a text mentions and does not take back, and whether it mentions any."""
    mentions = sorted(_mentions(text, choices, is_stated), key=lambda each: each.start)
    if len(mentions) > _MAX_MENTIONS:
        return None, True
    denied = _taken_back(text, mentions)
    stands = _without_rivals(text, [each for each in mentions if each not in denied])
    if stands and (explains := _EXPLAINS.search(text, stands[0].end)):
        stands = [each for each in stands if each.start < explains.start()]
        denied = [each for each in denied if each.start < explains.start()]
    picked = {each.label for each in stands} - {each.label for each in denied}
    return (picked.pop() if len(picked) == 1 else None), bool(mentions)


def _without_rivals(text: str, mentions: Sequence[_Mention]) -> list[_Mention]:
    """Leave out what is weighed first: "A seems right, but it is B", "between A and B, B is better"."""
    kept = list(mentions)
    for but in islice(_BUT.finditer(text), _MAX_MENTIONS):
        start = max(text.rfind(mark, 0, but.start()) for mark in ".!?\n") + 1
        behind = [each for each in kept if each.start >= but.end()]
        if behind and _TENTATIVE.search(text[max(start, but.start() - 2 * _WINDOW) : but.start()]):
            kept = [each for each in kept if each.end <= start] + behind
    if len(kept) > 2 and _BETWEEN.search(text[max(0, kept[0].start - _WINDOW) : kept[0].start]):
        gaps = [text[left.end : right.start] for left, right in pairwise(kept)]
        last = next((place for place, gap in enumerate(gaps) if re.match(r"\W*(?:and|or)\b", gap)), -1)
        is_list = all(map(_LISTED.fullmatch, gaps[: last + 1]))
        kept = kept[last + 2 :] if last >= 0 and is_list and len(kept) > last + 2 else kept
    return kept


def _taken_back(text: str, mentions: Sequence[_Mention]) -> list[_Mention]:
    """Return the mentions that a text takes back; what is said of the last one of a list is said of all."""
    denied = [(is_denied_before(text, each.start), is_denied_after(text, each.end)) for each in mentions]
    gaps = [text[left.end : right.start] for left, right in pairwise(mentions)]
    joined = [_LISTED.fullmatch(gap) is not None for gap in gaps]
    for place in range(len(gaps)):
        if joined[place] and denied[place][0] and not denied[place][1] and _is_listed(gaps[place:], joined[place:]):
            denied[place + 1] = (True, denied[place + 1][1])
    for place in reversed(range(len(gaps))):
        if joined[place] and denied[place + 1][1]:
            denied[place] = (denied[place][0], True)
    return [each for each, (before, after) in zip(mentions, denied, strict=True) if before or after]


def _is_listed(gaps: Sequence[str], joined: Sequence[bool]) -> bool:
    """Whether mentions are a list: "not A, B or C", but not "not A, B"."""
    together = takewhile(lambda pair: pair[1], zip(gaps, joined, strict=True))
    return any(re.search(r"[/&\w]", gap) for gap, _ in together)


def _mentions(text: str, choices: Mapping[str, str], is_stated: bool) -> list[_Mention]:
    """Return where options are mentioned: by their words, longer ones first, and by letter."""
    found, rest = list[_Mention](), text
    for label, option in sorted(choices.items(), key=lambda item: -len(item[1])):
        words = _words_of(option)
        pattern = re.compile(_edges(words) % r"\s+".join(map(re.escape, words.split())), re.IGNORECASE)
        places = [(each.start(), each.end()) for each in pattern.finditer(rest)]
        if words in (each.casefold() for each in choices):  # an option that is a letter is read as one
            continue
        found += [_Mention(label, start, end) for start, end in places]
        # A found option is blanked out, so that "10" is not found again inside "10 km".
        rest = pattern.sub(lambda each: "\0" * len(each.group()), rest)
        if len(found) > _MAX_MENTIONS:
            return found
    return found + _letters(rest, choices, is_stated)


def _edges(words: str) -> str:
    """Return a pattern around words that are not to be a part of a longer word or number."""
    before, after = r"(?<!\w)(?<!\w-)", r"(?!\w)"
    if words[0].isdigit():
        before += r"(?<!\d[.,/:])(?<!-)(?<!- )"
    if words[-1].isdigit():
        after += r"(?![.,/:^]\d)(?! \d{3})(?! ?/ ?\d)"
    return f"{before}%s{after}"


def _letters(text: str, choices: Mapping[str, str], is_stated: bool) -> list[_Mention]:
    """Return where letters of options are mentioned; a capital that stands alone is one, unless it is a word."""
    either = _either(choices)
    by_folded = {label.casefold(): label for label in choices}
    found: dict[int, _Mention] = {}
    for each in _clear_letters(either, is_stated).finditer(text):
        group = each.lastindex or 0
        found[each.start(group)] = _Mention(by_folded[each[group].casefold()], each.start(group), each.end(group))
        if len(found) > _MAX_MENTIONS:
            return list(found.values())
    for each in re.finditer(rf"(?<![{_LATIN}'’.°-])(?:{either})(?![{_LATIN}'’°]|-\w)", text):
        if each.start() not in found and _is_letter(text, each, is_stated):
            found[each.start()] = _Mention(each.group(), each.start(), each.end())
        if len(found) > _MAX_MENTIONS:
            break
    return list(found.values())


def _clear_letters(either: str, is_stated: bool) -> re.Pattern[str]:
    """Return a pattern of letters that are set off: in brackets, after "option", at the start of a line."""
    listed = r"| ?(?=\0|[,/&]|or\b|and\b)" if is_stated else ""
    set_off = rf"^[\"'(\[]?({either})(?:[)\]\"'.:,]+(?= |$|\0)|${listed})"
    return re.compile(
        rf"[(\[{{<][ \"']?({either})[ \"']?[)\]}}>]|\b(?:option|choice|letter)s? [\"'(]?({either})(?!\w)|{set_off}",
        re.IGNORECASE | re.MULTILINE,
    )


def _is_letter(text: str, found: re.Match[str], is_stated: bool) -> bool:
    """Whether a label that stands alone is meant as one: not the article, a number, or vitamin C."""
    before = text[max(0, found.start() - 20) : found.start()]
    if found.group() in "AaIi" and not _AFTER_LETTER.match(text, found.end()):
        return False
    if is_stated or _OPTION_WORD.search(before):
        return True
    return found.group().isalpha() and not _NAMED_BY_LETTER.search(before)


def _either(choices: Mapping[str, str]) -> str:
    return "|".join(re.escape(label) for label in sorted(choices, key=len, reverse=True))
