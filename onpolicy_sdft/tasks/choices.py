"""Which of the listed options a text picks, as a reader would say.

A text mentions options: by letter where it stands as one ("(B)", "option B", "B."), or by their words. A mention may be
taken back ("not B", "B is wrong", "B?"). The one option that is mentioned and not taken back is picked; two are none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from onpolicy_sdft.tasks.choice_mentions import Reading, either_of, plain, read_passage, readable, words_of
from onpolicy_sdft.tasks.denials import speaks_against
from onpolicy_sdft.tasks.plain_text import CHANGED_MIND, braced, without_next_question, without_thoughts

_MARKER = re.compile(
    r"\\boxed\s*\{|<answer>|\#{4}"
    r"|\b(?:answer|choice|option|solution|antwort|respuesta|réponse|resposta|risposta)\b"
    r"(?:\s+(?:to|for)\s[^\n.:=]{0,40}?|\s+(?:here|i\s+\w+))?\s*"
    r"(?:\b(?:is|would be|should be|must be|has to be|will be|ist|es|est|é|è)\b|[:=：])(?:\s*[:：])?"
    r"|(?:答案|答え)(?:是|为|は)?\s*[:：]?"
    r"|\b(?:I|we)(?:['’](?:d|ll|m|re)| would| will| am| are)? (?:\w+ly |then |thus |now )?"
    r"(?:pick|choose|select|go with|going with|vote for|opt for)\b"
    r"|(?P<so>(?:^|(?<=[.!?]\s)|(?<=\n))(?:so|therefore|thus|hence|in conclusion)\b,?)",
    re.IGNORECASE,
)
#: Before what looks like a marker: it speaks of all options, or of others, or of what is still to be done.
_NO_MARKER = re.compile(
    r"\b(?:each|every|all|any|one|some|first|second|third|(?:an)?other|wrong|incorrect|false|worst|second[- ]best"
    r"|next[- ]best|tempting|if|when|why"
    r"|whether|should|would|could|can|do|did|to|finding|which|what)"
    r"(?: (?:find|determine|get|choose|identify|give|select|pick|arrive at|reach|justify|explain|of|the|these|those|my"
    r"|your|answer|correct|right|best|possible|given|wrong|incorrect|single|remaining|and))* ?$",
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
#: What a line says at its end of the option it begins with.
_FINAL_VERDICT = re.compile(
    r"(?<!\w)(?:(?P<right>(?:this|it|which|that|so) is (?:the )?(?:correct|right)(?: answer| option| choice| one)?"
    r"|[✅✓✔☑])|not (?:the )?(?:correct|right)?(?: ?answer| ?option| ?choice)?|(?:incorrect|wrong)|[❌✗✘✖☒])\W*$",
    re.IGNORECASE,
)
_CALLED_RIGHT = re.compile(r"(?<!not )(?<!n['’]t )\b(?:correct|right|best|answer|also|this is it)\b", re.IGNORECASE)
_NO = re.compile(r"(?:^|(?<=[.!?]\s)|(?<=\n))no, (?=\S)", re.IGNORECASE)
_RIGHT_MARK, _WRONG_MARK = re.compile(r"\W{0,4}[✅✓✔☑]"), re.compile(r"\W{0,4}[❌✗✘✖☒]")
#: Words around an option that add nothing to it, in a sentence that picks it and says no more.
_JUST_BEFORE = (
    r"(?:(?:no|yes|s|so|wait|actually|rather|it|is|it['’]s|it is|that|that['’]s|that is|this is|i|we|meant?|think|now"
    r"|say|pick|choose|go|with|should|must|be|make|the|my|final|best|correct|right|answer|option|choice)\b[\s,:]*)*"
)
_JUST_BEHIND = (
    r"(?:\s*(?:is|must be|would be|seems|it is|instead|indeed|definitely|clearly|then|(?:the|my)|only|best|correct"
    r"|right|(?:final )?answer|option|choice|one))*"
)
#: How a text goes on after it has said what the answer is not: "The answer is not A. It is B."
_GOES_ON = re.compile(
    r"(?:so|but|instead|rather|then|therefore|thus|hence)?,? ?(?:it|that|this)(?:['’]s| is| must be)\b", re.I
)
#: "Is it B? Yes."
_ASKED_AND_ANSWERED = re.compile(
    r"((?:^|(?<=[\s\"'(,:]))(?:is|was|could|would|might) (?:it|that|this|the (?:correct |right )?answer)\b"
    r"[^.!?\n]{1,80})\?"
    r"(\s{0,3}(?:yes|yep|yeah|indeed|correct|exactly)\b(?!\s{0,2}(?:and|or|but) no|, but))",
    re.IGNORECASE,
)
_ASKS_OTHERWISE = re.compile(
    r"\b(?:not|never|wrong|incorrect|false|out|less|worse|than|except|unlikely|impossible|invalid|eliminat\w+|exclud\w+"
    r"|reject\w+|or|nor)\b|n['’]t\b",
    re.IGNORECASE,
)
_PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")
_PLACE = re.compile(
    rf"\W*{_JUST_BEFORE}(?:the )?({'|'.join(_PLACES)}|last) (?:answer |given |listed )?(?:option|choice|answer|one)"
    rf"(?: (?:is|seems|looks) (?:the )?(?:right|correct|best)(?: answer| option| choice| one)?)?\W*",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)|\n+")
_WINDOW = 60
_LETTER_AND_POINT = 5
_MAX_MARKERS = 8  # that are looked at, from the last one back
_READ_FOR_MARKERS = 16_000  # characters at the end of a text
_MAX_LINES = 200  # of a text that are read
_MAX_DOUBTS = 8  # of a text that are looked at, from the last one back


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
        readable(without_thoughts(text)), lambda before: _markers(before) or _chosen(before, choices)
    )
    return _chosen(text, choices)


def states_choice(text: str) -> bool:
    """Whether a text marks its pick as one, or is little more than it."""
    text = without_thoughts(text).strip()
    return len(text) <= _WINDOW or bool(_markers(text))


def _markers(text: str) -> list[re.Match[str]]:
    """Return the last places of a text that mark an answer."""
    found = _MARKER.finditer(text, max(0, len(text) - _READ_FOR_MARKERS))
    return [each for each in found if each["so"] or not _is_no_marker(text, each)][-_MAX_MARKERS:]


def _is_no_marker(text: str, marker: re.Match[str]) -> bool:
    return marker.group()[:1].isalpha() and bool(
        _NO_MARKER.search(text[max(0, marker.start() - _WINDOW) : marker.start()].rpartition("\n")[2])
    )


def _chosen(text: str, choices: Mapping[str, str]) -> str | None:
    if (label := _by_place(text, choices)) is not None:
        return label
    text = _ASKED_AND_ANSWERED.sub(_as_statement, text)
    markers = _markers(text)
    if not markers:
        return _picked_in_all(text, choices)
    if _contradicts(text, markers, choices):
        return None
    is_answer_marked = any(not each["so"] for each in markers)
    while markers:
        found = _behind_marker(text, markers, choices)
        if found.is_said:
            return found.label
        markers.pop()  # "Hope this answer is helpful!" says nothing about the marker before
    return _picked_at_first(text, choices) if is_answer_marked else _picked_in_all(text, choices)


def _as_statement(found: re.Match[str]) -> str:
    """Return a question that is answered with yes as what it says, unless it asks for what is wrong."""
    if _ASKS_OTHERWISE.search(found[1]):
        return found.group()
    return f"{found[1]}.{found[2]}"


def _by_place(text: str, choices: Mapping[str, str]) -> str | None:
    """Return the option of a text that names its place and says no more: "The second option."."""
    found = _PLACE.fullmatch(text.strip()) if len(text) <= 2 * _WINDOW else None
    if found is None:
        return None
    place = len(choices) - 1 if found[1].casefold() == "last" else _PLACES.index(found[1].casefold())
    return list(choices)[place] if place < len(choices) else None


def _picked_at_first(text: str, choices: Mapping[str, str]) -> str | None:
    """Return the option that the first sentence of a text is."""
    return _just_an_option(re.split(r"[.!?:]\s|\n", text.strip(), maxsplit=1)[0], choices)


def _contradicts(text: str, markers: Sequence[re.Match[str]], choices: Mapping[str, str]) -> bool:
    """Whether two answers stand right behind each other: "Answer: A", "Answer: B"."""
    if len(markers) < 2 or not text[markers[-1].end() :].strip():
        return False
    between = text[markers[-2].end() : markers[-1].start()]
    said_first, _, rest = between.rstrip(" ").rpartition("\n" if between.endswith("\n") else ".")
    if len(said_first) > _LETTER_AND_POINT + max(map(len, choices.values())) or not _LEADS_ON.fullmatch(rest):
        return False
    said, other = read_passage(between, choices, True).label, _behind_marker(text, markers[-1:], choices).label
    return None not in (said, other) and said != other


def _behind_marker(text: str, markers: Sequence[re.Match[str]], choices: Mapping[str, str]) -> Reading:
    """Return what the last marker of a text states of the options."""
    last = markers[-1]
    is_box = last.group().startswith("\\")
    stated = braced(text, last.end()) if is_box else text[last.end() :].partition("</answer>")[0]
    by_words = _by_words_alone(stated, choices)
    if by_words is not None:
        return Reading(by_words, True)
    if is_box and len(markers) > 1 and markers[-2].group().startswith("\\"):
        between = text[markers[-2].end() : last.start()]
        if not re.search(r"[.!?\n]", between):
            stated = f"{between.replace('}', ' ', 1)} {stated}"  # \boxed{A} or \boxed{B}
    # "I would not say the answer is A" speaks of the marker itself.
    before = re.split(r"[.!?]\s|\n", text[max(0, last.start() - _WINDOW) : last.start()])[-1]
    is_denied = speaks_against(before)
    sentences = _SENTENCE.split(stated.strip(), maxsplit=_MAX_LINES)
    if len(sentences) > 1 and _by_words_alone(sentences[1], choices) and len(sentences[0]) <= _LETTER_AND_POINT:
        sentences[:2] = [" ".join(sentences[:2])]  # "B. London" is one
    for place, sentence in enumerate(sentences):
        found = read_passage(sentence, choices, is_stated=True)
        if not found.is_said:
            continue
        if found.is_denied and not is_denied:
            behind = sentences[place + 1 : place + 2]
            if behind and _GOES_ON.match(behind[0]):
                return read_passage(behind[0], choices, is_stated=True)
            return Reading(None, not last["so"])  # "So A is wrong" says what the answer is not
        rest = " ".join(sentences[place + 1 :])
        return Reading(None if is_denied else _corrected(rest, found.label, choices), True)
    return Reading(None, False)


def _corrected(text: str, picked: str | None, choices: Mapping[str, str]) -> str | None:
    """Return what a text picks that goes on behind a pick: another one where it changes its mind ("No, wait, B").

    Where it names another option and does not clearly pick it, it picks none.
    """
    doubts = list(CHANGED_MIND.finditer(text))[-_MAX_DOUBTS:] or list(_NO.finditer(text))[-1:]
    ends = [*(each.start() for each in doubts[1:]), len(text)]
    for doubt, end in reversed(list(zip(doubts, ends, strict=False))):
        behind = text[doubt.end() : end].strip(" ,.:-")
        if (found := read_passage(behind, choices, is_stated=True)).is_said:
            clear = {_just_an_option(each, choices) for each in _SENTENCE.split(behind, maxsplit=_MAX_LINES)} - {None}
            return found.label if found.label == picked or clear == {found.label} else None
    return picked


def _just_an_option(sentence: str, choices: Mapping[str, str]) -> str | None:
    """Return the option of a sentence that picks one and says no more: "B", "It's B. London", "B is correct."."""
    label = read_passage(sentence, choices, is_stated=True).label
    if label is None or len(sentence) > 2 * _WINDOW + len(choices[label]):
        return None
    words = r"\s+".join(map(re.escape, words_of(choices[label]).split()))
    option = rf"\W*(?:{re.escape(label)}\W*(?:(?:the )?{words})?|(?:the )?{words}\W*(?:{re.escape(label)})?)\W*"
    return label if re.fullmatch(rf"\W*{_JUST_BEFORE}{option}{_JUST_BEHIND}\W*", sentence, re.IGNORECASE) else None


def _by_words_alone(text: str, choices: Mapping[str, str]) -> str | None:
    """Return the label of the option a text is, word for word: an option may itself be the word "A"."""
    words = plain(text)
    if not words or text.rstrip().endswith("?"):
        return None
    found = [label for label, option in choices.items() if words_of(option) == words]
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
    if verdicts := _verdicts(lines if len(lines) > 1 else _SENTENCE.split(text, maxsplit=_MAX_LINES), choices):
        return verdicts[0] if len(verdicts) == 1 else None
    if (label := _picked_before_others(lines, choices) or _picked_behind_all(lines, choices)) is not None:
        return label
    leading = [line for line in lines if _leads(line, choices)]
    if leading and leading[0] == lines[0]:
        if len(leading) > 1:  # it lists the options again
            labels = {read_passage(line, choices, is_stated=True).label for line in leading}
            return labels.pop() if len(labels) == 1 else None
        first, *rest = _SENTENCE.split(text, maxsplit=1)
        if rest and CHANGED_MIND.match(rest[0]):
            return _corrected(rest[0], read_passage(first, choices, is_stated=True).label, choices)
        verdict = _VERDICT.match(_behind_label(lines[0], choices)[1])
        return None if verdict and not verdict["right"] else read_passage(lines[0], choices, is_stated=True).label
    return read_passage(text, choices, is_stated=False).label


def _verdicts(lines: Sequence[str], choices: Mapping[str, str]) -> list[str]:
    """Return the options that are called right where a text goes through them, one a line: "A: No", "B: Yes"."""
    found, num_lines = dict[str, bool](), 0
    for line in lines:
        label, rest = _behind_label(line, choices)
        if label is None:
            continue
        verdict = _VERDICT.match(rest) or _FINAL_VERDICT.search(rest, max(0, len(rest) - _WINDOW))
        num_lines += 1
        if verdict:
            found[label] = found.get(label, False) or verdict["right"] is not None
        elif _RIGHT_MARK.match(line) or _WRONG_MARK.match(line):
            found[label] = found.get(label, False) or _RIGHT_MARK.match(line) is not None
    return [label for label, is_right in found.items() if is_right] if len(found) > 1 else []


def _behind_label(line: str, choices: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the label a line begins with, and what stands behind it and its words."""
    found = re.match(rf"\W{{0,8}}(?:[Oo]ption )?({either_of(choices)})\b", line)
    if found is None:
        return None, ""
    return found[1], re.sub(rf"^\W{{0,8}}{re.escape(choices[found[1]])}", "", line[found.end() :], flags=re.IGNORECASE)


def _picked_before_others(lines: Sequence[str], choices: Mapping[str, str]) -> str | None:
    """Return the option that the first line picks and says no more, where others are explained in the lines below."""
    label = _just_an_option(lines[0], choices) if lines else None
    others = [(line, _labelled(line, choices)) for line in lines[1:]]
    named = list(dict.fromkeys([label, *(other for _, other in others if other)]))
    if label and named == list(choices)[: len(named)] and _restated(lines[0], choices):
        return None  # it goes through the options from the first one on
    for line, other in others:
        is_bare = other is not None and _just_an_option(line, choices) is not None and not _WRONG_MARK.match(line)
        if other == label or is_bare or (other and _CALLED_RIGHT.search(line)):
            return None
    if label is None or not any(other for _, other in others):
        return None
    return _corrected("\n".join(line for line, other in others if not other), label, choices)


def _picked_behind_all(lines: Sequence[str], choices: Mapping[str, str]) -> str | None:
    """Return what the last line picks of a text that goes through all options, one a line."""
    labels = [_labelled(line, choices) for line in lines[:-1]]
    if list(dict.fromkeys(filter(None, labels))) != list(choices):
        return None
    label = _just_an_option(lines[-1], choices)
    is_of_list = _labelled(lines[-1], choices) is not None
    return label if label or is_of_list else read_passage(lines[-1], choices, is_stated=False).label


def _labelled(line: str, choices: Mapping[str, str]) -> str | None:
    """Return the label that a line begins with, set off from what follows."""
    found = re.match(rf"\W{{0,8}}(?:[Oo]ption )?({either_of(choices)})(?:[)\]}}\"'.:,]|\s+[-–—|❌✗✘✖✅✓✔☑]|\s*$)", line)
    return found[1] if found else None


def _restated(line: str, choices: Mapping[str, str]) -> str | None:
    """Return the label of the option that a line repeats word for word, with its letter."""
    found = re.match(rf"\W{{0,8}}({either_of(choices)})\b\W{{0,8}}(.*)", line)
    return found[1] if found and plain(found[2]) == words_of(choices[found[1]]) else None


def _leads(line: str, choices: Mapping[str, str]) -> bool:
    """Whether a line begins with a letter that is set off from what follows."""
    return re.match(rf"\s*[(\[\"']?(?:{either_of(choices)})(?:[)\]}}\"'.:,]|\s*$)", line, re.IGNORECASE) is not None
