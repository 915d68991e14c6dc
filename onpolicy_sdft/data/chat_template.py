"""What a chat template writes around an answer: read off a whole conversation that it renders, never guessed.

Two known texts stand in for a question and its answer. What the template writes between the question and the place of
the answer is the header; what it writes behind the answer ends it.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onpolicy_sdft.data.refusals import num_same
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.tool_calls import TOOLS, reasoning_of
from onpolicy_sdft.types import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Stand for the texts of a conversation. Plain words: templates trim, split and look for tags.
QUESTION, ANSWER = "onpolicy sdft question", "onpolicy sdft answer"

#: Stands for the reasoning beside an answer.
THOUGHT = "onpolicy sdft thought"

#: Stands for the tools of a conversation.
_TOOL_NAME = "onpolicy_sdft_tool"
_FUNCTION = {"name": _TOOL_NAME, "description": "A tool.", "parameters": {"type": "object", "properties": {}}}
TOOL = Turn(TOOLS, json.dumps([{"type": "function", "function": _FUNCTION}]))

#: The names of tokens that stand around reasoning, where a chat template does not show them around any.
_AROUND_THOUGHTS = re.compile(r"think|thought|reason", re.IGNORECASE)

#: A header that opens a block, such as that of the model's reasoning.
_OPENING = re.compile(r"(?:<\w+(?::\w+)?>|\[[A-Z]+\]|<\|[A-Z_]+\|>)\s*\Z")

#: Renders turns; True: up to the header of the next answer.
Render = Callable[[Sequence[Turn], bool], str]


@dataclass(frozen=True, slots=True)
class Markup:
    """What stands around an answer."""

    prompt: str  # a conversation up to where an answer begins
    whole: str  # the same conversation with its answer
    header: str  # of ``prompt``: what stands behind the question
    lead: str  # stands in ``whole`` between the prompt and the answer: the model has to write it
    end_id: int | None  # what ends an answer: an added token behind it; None: there is none
    control: Mapping[int, str]  # tokens that are markup, never text; with their names
    thoughts: frozenset[int]  # those of them that an answer may hold: they stand around its reasoning
    calls: frozenset[int]  # those of them that an answer may hold where there are tools: they mark calls

    @property
    def opened(self) -> str:
        """What the header opens for the answer to close, such as ``<think>`` and a newline."""
        found = _OPENING.search(self.header)
        return found[0] if found else ""


def read_markup(tokenizer: PreTrainedTokenizerBase, render: Render) -> Markup:
    """Read off what a chat template writes around an answer.

    Args:
        tokenizer: Whose tokens end and mark turns.
        render: Renders turns with its chat template.

    Raises:
        ConfigError: If the template leaves the question or the answer out.
    """
    asked = [Turn("user", QUESTION)]
    prompt, whole = render(asked, True), render([*asked, Turn("assistant", ANSWER)], False)
    for text, said, role in ((prompt, QUESTION, "user"), (whole, ANSWER, "assistant")):
        if said not in text:
            raise ConfigError(
                f"The chat template leaves out what the {role} says: {said!r} is not in {text!r}. "
                "Fix: the chat_template of the model's tokenizer."
            )
    place = whole.rindex(ANSWER)
    header, behind = prompt[prompt.rindex(QUESTION) + len(QUESTION) :], whole[place + len(ANSWER) :]
    lead = whole[len(prompt) : place] if whole.startswith(prompt) else ""
    names = _named_tokens(tokenizer)
    end_id = _end_of_answers(_ids(tokenizer, behind), names, tokenizer.eos_token_id)
    rendered = [prompt, whole, *_other_conversations(render, asked)]
    control = _control_tokens(tokenizer, names, rendered, blocks_in=header + lead, end_id=end_id)
    turn = set(_ids(tokenizer, whole[whole.rindex(QUESTION) :]))  # around every answer
    thoughts = {token for token in control if _AROUND_THOUGHTS.search(names[token])}
    thoughts |= set(_ids(tokenizer, _around_reasoning(render, asked))) & set(control)
    calls = set(_ids(tokenizer, _call_of_a_tool(render, asked))) & set(control)
    return Markup(prompt, whole, header, lead, end_id, control, frozenset(thoughts - turn), frozenset(calls))


def _end_of_answers(behind: Sequence[int], names: Mapping[int, str], eos: int | None) -> int | None:
    """Return the first added token behind an answer, or the end of text where that stands next to it."""
    first = next((place for place, token in enumerate(behind) if token in names), None)
    if first is None:
        return None
    together = list(itertools.takewhile(lambda token: token in names, behind[first:]))
    return eos if eos in together else together[0]


def literals(names: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds tokens spelled out in a text, the longest first; None where there are none.

    A token of one character cannot be broken in two, so it is left to the check of rows.
    """
    begun: dict[str, list[str]] = {}  # by their first two characters, so that hundreds of names cost little
    for name in sorted((name for name in names if len(name) > 1), key=len, reverse=True):
        begun.setdefault(name[:2], []).append(re.escape(name[2:]))
    parts = [f"{re.escape(start)}(?:{'|'.join(rests)})" for start, rests in begun.items()]
    return re.compile("|".join(parts)) if parts else None


def unused_in(texts: Sequence[str]) -> str:
    """Return a character that none of the texts has."""
    return next(char for char in map(chr, range(0xE000, 0xF8FF)) if not any(char in text for text in texts))


def broken(texts: Sequence[str], spelled: re.Pattern[str] | None) -> tuple[list[str], str]:
    """Break what texts spell in the middle, by a character that none of them has; empty where nothing is spelled."""
    if spelled is None or not any(spelled.search(text) for text in texts):
        return list(texts), ""
    seam = unused_in(texts)

    def apart(text: str) -> str:
        while spelled.search(text):
            text = spelled.sub(
                lambda found: f"{found[0][: len(found[0]) // 2]}{seam}{found[0][len(found[0]) // 2 :]}", text
            )
        return text

    return [apart(text) for text in texts], seam


class OwnMarkup:
    """Tells a template's control tokens from those that texts spell, where another program tokenises rendered text.

    What the template writes is put between marks that no text has; everything else is plain text.

    Args:
        names: Of the control tokens.
    """

    def __init__(self, names: Iterable[str]) -> None:
        # Outside the area of seams: taking the seam out of a text must leave the marks whole.
        self.mark = "".join(map(chr, (0xF0000 + each for each in secrets.token_bytes(8))))
        self._spelled = literals(names)

    def render(self, contents: Sequence[str], render: Callable[[Sequence[str]], str]) -> str:
        """Return what a template makes of texts, its own control tokens between marks."""
        texts, seam = broken(contents, self._spelled)
        rendered = render(texts)
        if self._spelled is not None:
            rendered = self._spelled.sub(lambda found: f"{self.mark}{found[0]}{self.mark}", rendered)
        return rendered.replace(seam, "") if seam else rendered

    def pieces(self, text: str) -> list[str]:
        """Return what is tokenised piece by piece: more than one where plain text spells control tokens."""
        parts = text.split(self.mark)
        parts[::2], seam = broken(parts[::2], self._spelled)
        return "".join(parts).split(seam) if seam else ["".join(parts)]


def notes_on(tokenizer: PreTrainedTokenizerBase, markup: Markup, date: str) -> list[str]:
    """Return what a user should know of a chat template before a run.

    Args:
        tokenizer: With the template.
        markup: What it writes around an answer.
        date: What it sees where it reads the clock; empty where it does not.
    """
    found = []
    if markup.lead.strip():
        found.append(
            f"the chat template writes {markup.lead!r} between its header and an answer: it is learned as the "
            "beginning of each target. To have it in the prompt, give context.student_template_kwargs and "
            "context.teacher_template_kwargs the template's argument for it (such as enable_thinking: false)"
        )
    leading = _added_in_front(tokenizer)
    if leading and _ids(tokenizer, markup.prompt)[: len(leading)] != leading:
        names = " ".join(map(str, tokenizer.convert_ids_to_tokens(leading)))
        found.append(
            f"the chat template leaves out {names}, which the tokenizer puts before every text: prompts are "
            "learned and answered without it, as the template has it"
        )
    if date:
        found.append(
            f"the chat template reads the clock and sees {date} in the whole run: --context.date {date} gives the "
            "same prompts again"
        )
    return found


def _added_in_front(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that a tokenizer puts before every text by itself, such as the beginning-of-text token."""
    text = _ids(tokenizer, QUESTION)
    whole: list[int] = tokenizer(QUESTION)["input_ids"]
    starts = (start for start in range(len(whole)) if whole[start : start + len(text)] == text)
    return whole[: next(starts, 0)]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _named_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the tokens that are more than pieces of text; runs of blanks, which some tokenizers add, are text."""
    names = {token: str(tokenizer.convert_ids_to_tokens(token)) for token in tokenizer.all_special_ids}
    names |= {token: added.content for token, added in tokenizer.added_tokens_decoder.items()}
    return {token: name for token, name in names.items() if name.strip()}


def _other_conversations(render: Render, asked: Sequence[Turn]) -> list[str]:
    """Return what a template writes of conversations with other turns, where it has them."""
    answer, tool = Turn("assistant", ANSWER), Turn("tool", QUESTION)
    found = []
    for turns in ([Turn("system", QUESTION), *asked], [*asked, answer, *asked], [*asked, answer, tool]):
        try:
            found.append(render(turns, True))
        except ConfigError:  # many templates have no system or tool turns, so nothing marks one
            continue
    return found


def _around_reasoning(render: Render, asked: Sequence[Turn]) -> str:
    """Return what a template writes from an answer's reasoning up to the answer; empty where it has none."""
    try:
        whole = render([*asked, Turn("assistant", ANSWER, reasoning_of(THOUGHT))], False)
    except ConfigError:
        return ""
    place = whole.rindex(QUESTION) + len(QUESTION)
    return whole[place : whole.rindex(ANSWER)] if THOUGHT in whole[place:] and ANSWER in whole[place:] else ""


def _call_of_a_tool(render: Render, asked: Sequence[Turn]) -> str:
    """Return what a template writes of an answer that reasons and calls a tool; empty where it writes no calls."""
    name = _TOOL_NAME
    call = {"id": "onpolicy1", "type": "function", "function": {"name": name, "arguments": {}}}
    extra = {**json.loads(reasoning_of(THOUGHT)), "tool_calls": [call]}
    turns = [TOOL, *asked]
    try:
        prompt, whole = render(turns, True), render([*turns, Turn("assistant", "", json.dumps(extra))], False)
    except ConfigError:
        return ""
    written = whole[num_same(prompt, whole) :]
    return written if name in written else ""


def _control_tokens(
    tokenizer: PreTrainedTokenizerBase,
    names: Mapping[int, str],
    rendered: Sequence[str],
    *,
    blocks_in: str,
    end_id: int | None,
) -> dict[int, str]:
    """Return special tokens, and others that the template writes around turns.

    A pair of tags that opens where an answer begins (``<think>``, ``</think>``) encloses what an answer says: it is
    text, as other tags are that are not special (``<tool_call>``).
    """
    control = set(tokenizer.all_special_ids)
    control |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    control |= {token for text in rendered for token in _ids(tokenizer, text)}
    blocks = set()
    for name in names.values():
        closing = f"{name[0]}/{name[1:]}"
        if name in blocks_in and closing in names.values():
            blocks |= {name, closing}
    return {
        token: names[token] for token in control if token in names and (names[token] not in blocks or token == end_id)
    }
