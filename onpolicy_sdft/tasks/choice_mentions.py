"""Where a text mentions the options of a question, and which of them it does not take back.

An option is mentioned by its words, or by letter where that stands as one.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, takewhile

from onpolicy_sdft.tasks.denials import is_denied_after, is_denied_before
from onpolicy_sdft.tasks.plain_text import plain_characters, without_wrappers

_OPTION_WORD = re.compile(
    r"(?:\b(?:options?|choices?|answers?|letters?|pick|choose|chose|select|selected|say|with|for|is|be|was|it|to)"
    r"|['’]s)\s*:?\s*[\"'(]*$",
    re.IGNORECASE,
)
_BEHIND_OPTION_WORD = " \n:\"'("
#: Behind a lone capital that is a word as well ("A", "I"): then it is a letter.
_AFTER_LETTER = re.compile(
    r"\s*(?:$|[\u2e80-\uffff]|[().,:;\]\"'!?*/&+]|(?:is|and|or|because|since|as|for|with|but|not|would|seems|looks|,)\b|[A-Z]\b)"
)
_NAMED_BY_LETTER = re.compile(
    r"\b(?:vitamin|plan|type|hepatitis|grade|class|group|team|point|line|angle|figure|part) $", re.IGNORECASE
)
_LATIN = r"0-9A-Za-z_\u00aa-\u2e7f"  # in scripts without blanks a letter may stand beside words: 选B
#: What follows explains the pick; the options it names are not picked.
_EXPLAINS = re.compile(
    r"\b(?:because|since|as (?:it|the|they|this|that|he|she|all|only)|which|who|where|while|whereas|although|though"
    r"|due to|over|given that|for (?:the|its)|unlike|compared|so that|even)\b"
    r"|;(?!\s*(?:maybe|perhaps|possibly|or|and|also)\b|\s*\(?[A-Z]\b)|—",
    re.IGNORECASE,
)
#: What is named before "but" is not picked where its clause has one of these: "A seems right, but it is B".
_TENTATIVE = re.compile(
    r"\b(?:thought|seem(?:s|ed)?|look(?:s|ed)?|appear(?:s|ed)?|might|may|could|tempt\w+|considered|guess(?:ed)?|first"
    r"|initially|plausible|close|almost|common|many|some|people|says?|said)\b",
    re.IGNORECASE,
)
_BUT = re.compile(r"\b(?:but|however|yet)\b", re.IGNORECASE)
_OR_IS_IT = re.compile(
    r"(?:[,;.!?\u2014\u2013]|\s-)\s{0,2}(?:or|but)\s(?:(?:is|was|could|might|should|would) (?:it|that)(?: be| not be)?"
    r"|maybe|perhaps|possibly|what about|how about|then again)\b",
    re.IGNORECASE,
)
_BETWEEN = re.compile(r"\b(?:between|among|comparing|of|out of|from) (?:options? )?\W*$", re.IGNORECASE)
_LISTED = re.compile(r"[)\]\"']*\s*(?:,|/|&|,?\s*(?:and|or|nor))?\s*(?:options?\s+)?[(\[\"']*", re.IGNORECASE)
_WINDOW = 60
#: A clause that grants something before the pick: "While A is important, B is right".
_GRANTED = re.compile(
    r"(?:^|[.!?;:\n]\s*|\b(?:so|but|and|therefore|thus|hence),? )(?:while|although|though|even though|whereas|despite"
    r"|unlike)\b[^,.!?;:\n]*,",
    re.IGNORECASE,
)
#: What is said of several options at once is not the pick: "A, B and C are all right, so D", "A and B are old, but C".
_OF_SEVERAL = re.compile(
    r"[)\]\"'.]*\s*(?:are|were|have|do|can|all|both|take|need|make)\b(?P<said>[^.!?;\n]{0,80}?)"
    r"[,;]? (?P<turn>so|but|while|whereas|leaving|which leaves)\b",
    re.IGNORECASE,
)
_RIGHT = re.compile(r"\b(?:correct|right|true|answers?|possible|valid)\b", re.IGNORECASE)
#: Right before an option: it is another one than the answer.
_ANOTHER = re.compile(
    r"\b(?:(?:an)?other|second[- ]best|next[- ]best|tempting|runner[- ]up)(?: wrong| incorrect| possible)?"
    r" (?:answer|option|choice|one)(?: is| was| would be)?:?\s*(?:the )?[\"'(]*$"
    r"|\bwhy (?:is|are|was|not)(?: (?:option|choice|the))* [\"'(]*$"
    r"|\bover (?:option |the )?[\"'(]*$",
    re.IGNORECASE,
)
#: Marks of Markdown; a star between digits is a sign of arithmetic.
_STARS = re.compile(r"(?<![\d*])\*++|(?<=\d)\*++(?!\d)")
_QUOTES = str.maketrans({**dict.fromkeys("“”„«»", '"'), **dict.fromkeys("‘’‚", "'")})
_FRACTION = re.compile(r"(?<!\d)\\[dt]?frac\s*(?:\{\s*(-?\w+)\s*\}\s*\{\s*(\w+)\s*\}|(\d)(\d))")
#: Of a text; one with more mentions picks none.
MAX_MENTIONS = 50


@dataclass(frozen=True, slots=True)
class Mention:
    """A place at which a text names an option."""

    label: str
    start: int
    end: int


def plain(text: str) -> str:
    """Return the words of an option as they are compared."""
    text = " ".join(_STARS.sub("", text).split()).casefold()
    # A sign belongs to a number; an option that is all punctuation stays itself.
    return text.strip(string.punctuation.replace("-", "").replace("+", "") + " ") or text


def words_of(option: str) -> str:
    """Return the words of an option without what LaTeX and Markdown put around them."""
    return plain(readable(option)) or plain(option)


def readable(text: str) -> str:
    """Return a text without marks of LaTeX and Markdown, in one spelling of quotes and fractions."""
    text = plain_characters(without_wrappers(text)).translate(_QUOTES)
    text = _FRACTION.sub(lambda found: f"{found[1] or found[3]}/{found[2] or found[4]}", text)
    text = re.sub(r"[`$]|(?<![^\W_])_+|_+(?![^\W_])", "", _STARS.sub("", text))
    return "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())


@dataclass(frozen=True, slots=True)
class Reading:
    """What a passage says of the options."""

    label: str | None  # of the one that it mentions and does not take back
    is_said: bool  # it mentions one
    is_denied: bool = False  # it takes back all that it mentions


def read_passage(text: str, choices: Mapping[str, str], is_stated: bool) -> Reading:
    """Return the one option that a text mentions and does not take back, and whether it mentions any.

    Args:
        text: Of a completion, as :func:`readable` returns it.
        choices: Options by label.
        is_stated: The text stands where an answer does, so that a letter is one.
    """
    mentions = sorted(find_mentions(text, choices, is_stated), key=lambda each: each.start)
    if len(mentions) > MAX_MENTIONS:
        return Reading(None, True)
    if _is_open(text, mentions):
        return Reading(None, True)
    granted = [each.span() for each in islice(_GRANTED.finditer(text), MAX_MENTIONS)]
    mentions = _without_others(
        text, [each for each in mentions if not any(start <= each.start < end for start, end in granted)]
    )
    denied = _taken_back(text, mentions)
    stands = _without_rivals(text, [each for each in mentions if each not in denied])
    if stands and (explains := _EXPLAINS.search(text, stands[0].end)):
        stands = [each for each in stands if each.start < explains.start()]
        denied = [each for each in denied if each.start < explains.start()]
    picked = {each.label for each in stands} - {each.label for each in denied}
    return Reading(
        picked.pop() if len(picked) == 1 else None, bool(mentions), bool(mentions) and len(denied) == len(mentions)
    )


def _is_open(text: str, mentions: Sequence[Mention]) -> bool:
    """Whether a text ends with another option beside the one it names: "It's B - or is it C?"."""
    for found in islice(_OR_IS_IT.finditer(text), MAX_MENTIONS):
        before = {each.label for each in mentions if each.end <= found.start()}
        behind = {each.label for each in mentions if each.start >= found.end()}
        if len(before) == 1 and len(behind) == 1 and before != behind:
            return True
    return False


def _without_rivals(text: str, mentions: Sequence[Mention]) -> list[Mention]:
    """Leave out what is weighed first: "A seems right, but it is B", "between A and B, B is better"."""
    kept = list(mentions)
    for but in islice(_BUT.finditer(text), MAX_MENTIONS):
        start = max(text.rfind(mark, 0, but.start()) for mark in ".!?\n") + 1
        behind = [each for each in kept if each.start >= but.end()]
        if behind and _TENTATIVE.search(text[max(start, but.start() - 2 * _WINDOW) : but.start()]):
            kept = [each for each in kept if each.end <= start] + behind
    kept = _without_lists(text, kept)
    if len(kept) > 2 and _BETWEEN.search(text[max(0, kept[0].start - _WINDOW) : kept[0].start]):
        gaps = [text[left.end : right.start] for left, right in pairwise(kept)]
        last = next((place for place, gap in enumerate(gaps) if re.match(r"\W*(?:and|or)\b", gap)), -1)
        is_list = all(map(_LISTED.fullmatch, gaps[: last + 1]))
        kept = kept[last + 2 :] if last >= 0 and is_list and len(kept) > last + 2 else kept
    return kept


def _without_lists(text: str, mentions: list[Mention]) -> list[Mention]:
    """Leave out lists of which something is said that does not pick them, before the one that is picked."""
    start = 0
    for place, (left, right) in enumerate([*pairwise(mentions), (mentions[-1], None)] if mentions else []):
        if right is not None and _LISTED.fullmatch(text[left.end : right.start]):
            continue
        said = _OF_SEVERAL.match(text, left.end, left.end + 2 * _WINDOW) if place > start else None
        is_picked = said is not None and said["turn"].casefold() != "so" and _RIGHT.search(said["said"])
        if said and right is not None and right.start >= said.end() and not is_picked:
            return mentions[:start] + mentions[place + 1 :]
        start = place + 1
    return mentions


def _taken_back(text: str, mentions: Sequence[Mention]) -> list[Mention]:
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


def _without_others(text: str, mentions: Sequence[Mention]) -> list[Mention]:
    """Leave out what is called another option than the answer: "the other option is A. London"."""
    kept = list[Mention]()
    last: Mention | None = None
    for each in mentions:
        is_same = last is not None and last.label == each.label and not text[last.end : each.start].strip(" .:,)(-")
        if is_same or _ANOTHER.search(text[max(0, each.start - _WINDOW) : each.start]):
            last = each
        else:
            kept, last = [*kept, each], None
    return kept


def _is_listed(gaps: Sequence[str], joined: Sequence[bool]) -> bool:
    """Whether mentions are a list: "not A, B or C", but not "not A, B"."""
    together = takewhile(lambda pair: pair[1], zip(gaps, joined, strict=True))
    return any(re.search(r"[/&\w]", gap) for gap, _ in together)


def find_mentions(text: str, choices: Mapping[str, str], is_stated: bool) -> list[Mention]:
    """Return where options are mentioned: by their words, longer ones first, and by letter."""
    found, rest = list[Mention](), text
    for label, option in sorted(choices.items(), key=lambda item: -len(item[1])):
        words = words_of(option)
        if words in (each.casefold() for each in choices):  # an option that is a letter is read as one
            continue
        pattern = re.compile(_edges(words) % r"\s+".join(map(re.escape, words.split())), re.IGNORECASE)
        places = [each.span() for each in islice(pattern.finditer(rest), MAX_MENTIONS + 1)]
        found += [Mention(label, start, end) for start, end in places]
        if len(found) > MAX_MENTIONS:
            return found
        # A found option is blanked out, so that "10" is not found again inside "10 km".
        rest = pattern.sub(lambda each: "\0" * len(each.group()), rest) if places else rest
    return found + _letters(rest, choices, is_stated)


def _edges(words: str) -> str:
    """Return a pattern around words that are not to be a part of a longer word or number."""
    before, after = r"(?<!\w)(?<!\w-)", r"(?!\w)"
    if words[0].isdigit():
        before += r"(?<!\d[.,/:])(?<!-)(?<!- )"
    if words[-1].isdigit():
        after += r"(?![.,/:^]\d)(?! \d{3})(?! ?/ ?\d)"
    return f"{before}%s{after}"


def _letters(text: str, choices: Mapping[str, str], is_stated: bool) -> list[Mention]:
    """Return where letters of options are mentioned; a capital that stands alone is one, unless it is a word."""
    either = either_of(choices)
    by_folded = {label.casefold(): label for label in choices}
    found: dict[int, Mention] = {}
    for each in _clear_letters(either, is_stated).finditer(text):
        group = each.lastindex or 0
        found[each.start(group)] = Mention(by_folded[each[group].casefold()], each.start(group), each.end(group))
        if len(found) > MAX_MENTIONS:
            return list(found.values())
    for each in re.finditer(rf"(?<![{_LATIN}'’.°-])(?:{either})(?![{_LATIN}'’°]|-\w)", text):
        if each.start() not in found and _is_letter(text, each, is_stated):
            found[each.start()] = Mention(each.group(), each.start(), each.end())
        if len(found) > MAX_MENTIONS:
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
    follows_word = before.rstrip(_BEHIND_OPTION_WORD)[-1:].isalpha()  # quicker to see than which word it is
    if is_stated or (follows_word and _OPTION_WORD.search(before)):
        return True
    return found.group().isalpha() and not _NAMED_BY_LETTER.search(before)


def either_of(choices: Mapping[str, str]) -> str:
    """Return a pattern of the labels, longer ones first."""
    return "|".join(re.escape(label) for label in sorted(choices, key=len, reverse=True))
