"""The prompt pair of a demonstration, as token ids, through the tokenizer's chat template.

The student sees the bare prompt; the teacher sees it with the demonstration. Both end in the same generation
header, so the answer starts in the same state. One rule holds for every row: its bare prompt and its target are the
first tokens of the whole conversation as the chat template writes it, and the target decodes to the response.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.data.chat_template import (
    ANSWER,
    QUESTION,
    TOOL,
    broken,
    literals,
    notes_on,
    read_markup,
)
from onpolicy_sdft.data.refusals import (
    ends_otherwise,
    no_reasoning,
    no_tools,
    not_a_prefix,
    not_rendered,
    not_the_response,
    spells_control,
)
from onpolicy_sdft.data.template_source import refuse_unread, sources_of
from onpolicy_sdft.data.tokenising import TextIds
from onpolicy_sdft.data.writer import Conversation, TemplateWriter
from onpolicy_sdft.errors import ConfigError, DataError
from onpolicy_sdft.tool_calls import (
    TOOLS,
    calls_in,
    has_tools,
    reasoning_in,
    renamed,
)
from onpolicy_sdft.types import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from onpolicy_sdft.config.schema import ContextConfig

#: Tokens of the prompt that a completion is decoded behind: some tokenizers write the first word of a text otherwise.
_NUM_BEFORE = 4

#: Arguments of chat templates that say whether a model thinks before it answers.
_THINKING = ("enable_thinking", "thinking")


#: Where template arguments are given.
_OPTIONS = ("context.student_template_kwargs", "context.teacher_template_kwargs")


class Renderer:
    """Turns conversations into token ids with one tokenizer.

    Args:
        tokenizer: With a chat template.
        config: Template arguments of both prompts, and the date that templates read.

    Raises:
        ConfigError: If the two prompts would start the answer in different states, or the chat template fails.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ContextConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        kwargs = (config.student_template_kwargs, config.teacher_template_kwargs)
        self.writer = TemplateWriter(tokenizer, config.date, sources_of(tokenizer, *kwargs))
        for option, given in zip(_OPTIONS, kwargs, strict=True):
            refuse_unread(option, given, sources_of(tokenizer, given))
        #: Tokenises plain text, without special tokens.
        self.text_ids = TextIds(tokenizer)
        student, teacher = map(self.writer.with_arguments, kwargs)
        self.markup = self.writer.settle(lambda: read_markup(tokenizer, student))
        teachers = read_markup(tokenizer, teacher)
        if self.markup.header != teachers.header:
            raise ConfigError(
                f"The two prompts start the answer differently: the student's header is {self.markup.header!r}, the "
                f"teacher's {teachers.header!r}. Give context.student_template_kwargs and "
                "context.teacher_template_kwargs the same thinking mode."
            )
        for option, given in zip(_OPTIONS, kwargs, strict=True):
            self._refuse_unwritten_tools(option, given)
        self._ends_with_tools = self._end_with_tools()
        self.control_ids = frozenset(self.markup.control)
        eos: int = tokenizer.eos_token_id
        self.terminator_id = eos if self.markup.end_id is None else self.markup.end_id
        self._markers: dict[Conversation, list[int]] = {}  # control tokens of conversations of such roles
        self.writer.spelled = literals(self.markup.control.values())
        self.text_ids.cut_at(self.markup.control.values(), self.markup.whole)
        self._lead_ids = self.text_ids(self.markup.lead)
        self._before = self.text_ids(self.markup.prompt)[-_NUM_BEFORE:]
        self._num_before = len(self._plain(self._before))
        self._lead, self._tail = self._around_answers()
        self._tail_ids = self.text_ids(self._tail)

    def prompt_ids(self, turns: Sequence[Turn], template_kwargs: dict[str, Any]) -> tuple[int, ...]:
        """Tokenise a conversation up to and including the header of the answer.

        Control tokens that a turn spells (models do, and people) are broken in two, so that they stay text; rows of a
        data set that spell them are refused before.

        Raises:
            ConfigError: If the chat template cannot render the turns.
            DataError: If it leaves out their tools.
        """
        ids = self._ids(self.writer.pieces(turns, template_kwargs, generation=True))
        self._refuse_unwritten(turns, template_kwargs, generation=True)
        if self._spelled_among(turns, ids, template_kwargs, generation=True) is not None:
            # A tokenizer that normalises texts finds control tokens in other spellings than their own.
            ids = self._ids(self.writer.pieces(turns, template_kwargs, generation=True, apart=True))
        return tuple(ids)

    def student_ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Tokenise the bare prompt."""
        return self.prompt_ids(turns, self.config.student_template_kwargs)

    def teacher_ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Tokenise the prompt with the demonstration."""
        return self.prompt_ids(turns, self.config.teacher_template_kwargs)

    def num_left_out(self, turns: Sequence[Turn], *, teacher: bool) -> int:
        """Count the characters of turns that the chat template does not write, such as the reasoning of old turns.

        A text that the template writes in another form (escaped, say) is not left out: what the template writes of the
        turn with a plain text in its place tells how long it would be with nothing left out.
        """
        kwargs = self.config.teacher_template_kwargs if teacher else self.config.student_template_kwargs
        written = self.writer.text(turns, kwargs, generation=True)
        num = 0
        for index, turn in enumerate(turns):
            said, thought = turn.content.strip(), reasoning_in(turn)
            num += 0 if thought in written else len(thought)
            if turn.role == TOOLS or said in written:  # a template writes tools in its own form
                continue
            others = [*turns[:index], replace(turn, content=ANSWER), *turns[index + 1 :]]
            marked = self.writer.text(others, kwargs, generation=True)
            lost = len(marked) + len(said) - len(ANSWER) - len(written) if ANSWER in marked else len(said)
            num += max(0, lost)
        return num

    @contextlib.contextmanager
    def ahead(self, rows: Iterable[tuple[Sequence[Turn], str]], *, teacher: bool = False) -> Iterator[None]:
        """Render and tokenise many conversations together; inside, asking for one of them costs little.

        Args:
            rows: Turns with the answer to them; an empty answer: the prompt alone is asked for.
            teacher: Whether they are the teacher's.
        """
        kwargs = self.config.teacher_template_kwargs if teacher else self.config.student_template_kwargs
        with self.writer.ahead(rows, kwargs) as pieces, self.text_ids.ahead(pieces):
            yield

    @property
    def end_ids(self) -> tuple[int, ...]:
        """What the chat template writes behind an answer, up to the token that ends it."""
        return (*self._tail_ids, self.terminator_id)

    def start_of(self, text: str, num_tokens: int) -> str:
        """Return the first tokens of a text, as text; a character cut in half is left out."""
        return self._plain(self.text_ids(text)[:num_tokens]).rstrip("\ufffd")

    def response_ids(self, response: str) -> tuple[int, ...]:
        """Tokenise an answer as a target: what the chat template writes from the header to what ends the answer.

        Raises:
            ConfigError: If the chat template does not end answers.
            DataError: If the template does not write this text.
        """
        return self.target([Turn("user", QUESTION)], response)[1]

    def target(self, turns: Sequence[Turn], response: str | Turn) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokenise a bare prompt and the answer to it, as they stand in the whole conversation.

        Args:
            turns: The conversation up to the answer.
            response: The answer; a turn, where it calls tools: its text is what the chat template makes of the calls.

        Returns:
            Ids of the prompt, header included, and of the target, what ends it included.

        Raises:
            ConfigError: If the chat template does not end answers.
            DataError: If prompt and target are not what the chat template writes, or the target is not the response.
        """
        if self.markup.end_id is None:
            raise ConfigError(
                "The chat template ends an answer with no token of its own, so a model could not learn to stop: it "
                f"writes {self.markup.whole!r} behind the prompt {self.markup.prompt!r}. Fix: the model's "
                "chat_template.jinja, so that it writes the end-of-text token ({{ eos_token }}) behind what an "
                "assistant says."
            )
        answer = Turn("assistant", response) if isinstance(response, str) else response
        answered, kwargs = [*turns, answer], self.config.student_template_kwargs
        try:
            asked, whole = (
                self.writer.text(said, kwargs, generation=generation)
                for said, generation in ((turns, True), (answered, False))
            )
        except ConfigError as error:
            raise DataError(not_rendered([turn.role for turn in answered], error.__cause__ or error)) from error
        self._refuse_unwritten(answered, kwargs, generation=False)
        asked_ids, whole_ids = self._ids([asked]), self._ids([whole])
        if (found := self._spelled_among(answered, whole_ids, kwargs, generation=False)) is not None:
            place, name = found
            raise DataError(spells_control(answered[place].role, answered[place].content + answered[place].extra, name))
        target = self._behind(asked_ids, whole_ids, calls=bool(calls_in(answer)))
        if not target:
            raise DataError(not_a_prefix(asked, whole, answer.content, self._way_out(turns, answered, asked, whole)))
        text = self.decode(target)
        if answer.extra:
            if reasoning_in(answer) not in text:
                raise DataError(no_reasoning(text))
            if answer.content.strip() not in text:
                raise DataError(not_the_response(text, answer.content))
        elif answer.content not in (text, self.markup.opened + text):
            raise DataError(not_the_response(text, answer.content))
        return tuple(asked_ids), tuple(target)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of a completion: without what ends it, and without what the template puts around answers.

        Control tokens inside it are shown: whoever reads the text sees what is learned.
        """
        ids = list(token_ids)
        ended = bool(ids) and self._ends(ids[-1])
        ids = ids[:-1] if ended else ids
        text = self._plain([*self._before, *ids])[self._num_before :].removeprefix(self._lead)
        return text.removesuffix(self._tail) if ended else text

    def controls(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Return the control tokens inside a completion, by name: neither its end nor what precedes every answer.

        Where an answer has a header of its own (gpt-oss: ``<|channel|>final<|message|>``), thoughts have one too: what
        stands before the last such header is the model's way to its answer.
        """
        ids = list(token_ids)
        if ids and self._ends(ids[-1]):
            ids, tail = ids[:-1], self._tail_ids
            ids = ids[: -len(tail)] if tail and ids[-len(tail) :] == tail else ids
        ids = [token for token in ids if token not in self.markup.thoughts]
        lead = self._lead_ids
        if any(token in self.control_ids for token in lead):
            places = (at for at in range(len(ids) - len(lead), -1, -1) if ids[at : at + len(lead)] == lead)
            ids = ids[next(places, -len(lead)) + len(lead) :]
        elif ids[: len(lead)] == lead:
            ids = ids[len(lead) :]
        return tuple(self.markup.control[token] for token in self._control_among(ids))

    def spelled_in(self, text: str) -> str:
        """Return the first control token that a text spells; empty where it spells none."""
        found = self.writer.spelled.search(text) if self.writer.spelled else None
        return found[0] if found else ""

    def notes(self) -> list[str]:
        """Return what a user should know of the chat template before a run."""
        found = notes_on(self.tokenizer, self.markup, self.writer.date)
        if self.config.date is not None and not self.writer.date:
            found.append(
                f"context.date={self.config.date} has no effect: the model's chat template does not read the clock"
            )
        return found

    def _way_out(self, turns: Sequence[Turn], answered: Sequence[Turn], asked: str, whole: str) -> str:
        """Return what would make a prompt the beginning of the conversation that answers it; empty: not known."""
        lost = {turn.role for turn in turns if turn.content.strip() in asked and turn.content.strip() not in whole}
        if lost == {"system"}:
            return "put the system message's text into the user's turn: the template drops it once there is an answer"
        for name, value in itertools.product(_THINKING, (False, True)):
            kwargs = {**self.config.student_template_kwargs, name: value}
            with contextlib.suppress(ConfigError):
                asked_ids, whole_ids = (
                    self._ids(self.writer.pieces(said, kwargs, generation=generation))
                    for said, generation in ((turns, True), (answered, False))
                )
                if self._behind(asked_ids, whole_ids, calls=bool(calls_in(answered[-1]))):
                    return (
                        "context.student_template_kwargs and context.teacher_template_kwargs "
                        f"{{{name}: {str(value).lower()}}}"
                    )
        return ""

    def _behind(self, asked_ids: Sequence[int], whole_ids: Sequence[int], *, calls: bool = False) -> list[int]:
        """Return what follows a prompt in the whole conversation, up to what ends the answer; empty: it does not."""
        places = range(len(asked_ids), len(whole_ids))
        end = next((place for place in places if whole_ids[place] == self.markup.end_id), None)
        if end is None and calls:  # some templates end calls otherwise (gpt-oss: <|call|>)
            end = next((place for place in reversed(places) if whole_ids[place] in self.control_ids), None)
        follows = end is not None and list(whole_ids[: len(asked_ids)]) == list(asked_ids)
        return list(whole_ids[len(asked_ids) : end + 1]) if follows and end is not None else []

    def _around_answers(self) -> tuple[str, str]:
        """Return what completions decode to before and behind an answer.

        It is what the template writes there, and the blank that some tokenizers put behind a control token.
        """
        target = self._behind(self._ids([self.markup.prompt]), self._ids([self.markup.whole]))
        text = self._plain([*self._before, *target[:-1]])[self._num_before :]
        lead, answer, tail = text.partition(ANSWER)
        return (lead, tail) if answer else ("", "")  # no row can be learned then: each is refused with both texts

    def _ends(self, token: int) -> bool:
        is_markup = token in self.control_ids and token not in self.markup.thoughts
        return is_markup or token == self.tokenizer.eos_token_id

    def _plain(self, ids: Sequence[int]) -> str:
        return self.text_ids.text(ids)

    def _ids(self, pieces: Sequence[str]) -> list[int]:
        # The template wrote every special token there is to be: adding more would double the first one.
        ids = [token for piece in pieces for token in self.text_ids(piece)]
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise ConfigError("The chat template writes the beginning-of-text token twice.")
        return ids

    def _spelled_among(
        self, turns: Sequence[Turn], ids: Sequence[int], kwargs: dict[str, Any], *, generation: bool
    ) -> tuple[int, str] | None:
        """Return the place of the first turn that spells a control token, and its name; ``ids``: the conversation."""
        # Tools and calls stay, without what they spell: a template may mark each of them.
        plain = tuple(turn if turn.role == TOOLS else replace(turn, content=QUESTION) for turn in turns)
        key = (plain, id(kwargs), generation)
        if (markers := self._markers.get(key)) is None:
            markers = self._control_among(self._ids(self.writer.pieces(plain, kwargs, generation=generation)))
            if not has_tools(plain):  # those are other ones in every row
                self._markers[key] = markers
        if self._control_among(ids) == markers:
            return None  # all of them are the template's own: no turn has to be looked at
        for place, turn in enumerate(turns):
            said = f"{turn.content}\n{turn.extra}"
            is_answer = place == len(turns) - 1 and not generation
            own = self.markup.thoughts if is_answer else frozenset[int]()
            (text,), seam = broken([said], self.writer.spelled) if generation else ([said], "")  # as prompts are read
            for part in text.split(seam) if seam else [text]:
                spelled = [token for token in self._control_among(self.text_ids(part)) if token not in own]
                for name in map(self.markup.control.__getitem__, spelled):
                    # What stands for unknown characters too is markup only where it is spelled.
                    if name != self.tokenizer.unk_token or name in part:
                        return place, name
        return None

    def _refuse_unwritten_tools(self, option: str, kwargs: dict[str, Any]) -> None:
        """Refuse tools for all rows that the chat template reads and does not write."""
        if not kwargs.get("tools"):
            return
        asked, others = [Turn("user", QUESTION)], {**kwargs, "tools": None}
        text = self.writer.text(asked, kwargs, generation=True)
        if text == self.writer.text(asked, others, generation=True):
            raise ConfigError(
                f"{option} has tools, which the model's chat template does not write: with and without them it writes "
                f"{text[:160]!r}. Fix: a model whose chat template takes tools, or write them as text into the "
                "messages."
            )

    def _end_with_tools(self) -> str:
        """Return what is wrong with rows that have tools: their answers end otherwise; empty: nothing."""
        render = self.writer.with_arguments(self.config.student_template_kwargs)
        try:
            found = read_markup(self.tokenizer, lambda turns, generation: render([TOOL, *turns], generation))
        except ConfigError:  # it takes no tools, which is said of the rows that have some
            return ""
        if found.end_id == self.markup.end_id:
            return ""
        ends = (None if each is None else str(self.tokenizer.convert_ids_to_tokens(each)) for each in (
            self.markup.end_id, found.end_id
        ))  # fmt: skip
        return ends_otherwise(*ends)

    def _refuse_unwritten(self, turns: Sequence[Turn], kwargs: dict[str, Any], *, generation: bool) -> None:
        """Refuse tools and calls that the chat template leaves out; each gets a name that nothing else has."""
        if not has_tools(turns):
            return
        if self._ends_with_tools and any(turn.role == TOOLS for turn in turns):
            raise DataError(self._ends_with_tools)
        marked, names = renamed(turns)
        text = self.writer.text(marked, kwargs, generation=generation)
        for marker, name in names.items():
            if marker not in text:
                raise DataError(no_tools(name, text))

    def _control_among(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in self.control_ids]
