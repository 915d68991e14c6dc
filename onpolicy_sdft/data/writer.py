"""Conversations as text, as the tokenizer's chat template writes them at one moment."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import TemplateError

from onpolicy_sdft.data.chat_template import Render, broken, unused_in
from onpolicy_sdft.data.template_source import at_moment, reads_clock
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.tool_calls import messages_of, with_arguments_as_text
from onpolicy_sdft.types import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Result = TypeVar("Result")

#: Turns, the template arguments they are rendered with, and whether up to the header of the next answer.
Conversation = tuple[tuple[Turn, ...], int, bool]


class TemplateWriter:
    """Writes conversations with a tokenizer's chat template.

    Args:
        tokenizer: With a chat template.
        date: What templates that read the clock see, in ISO format; None: today.
        sources: The chat templates that may be rendered.

    Raises:
        ConfigError: If the date is none, or a template has an error.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, date: str | None, sources: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        date = date or datetime.now().date().isoformat()
        self._moment = _moment(date)
        #: What the chat template sees, as ``context.date`` takes it; empty where it does not read the clock.
        self.date = date if any(reads_clock(each) for each in sources) else ""
        #: Finds control tokens that texts spell; None: not looked for.
        self.spelled: re.Pattern[str] | None = None
        self._in_parts = False
        self._known: dict[Conversation, list[str]] = {}  # those that are written ahead

    def pieces(
        self, turns: Sequence[Turn], kwargs: dict[str, Any], *, generation: bool, apart: bool = False
    ) -> list[str]:
        """Write a conversation: in more than one piece where control tokens that turns spell are broken.

        Args:
            turns: The conversation.
            kwargs: Arguments of the template.
            generation: Up to and including the header of the next answer.
            apart: Each character of a text is a piece of its own.

        Raises:
            ConfigError: If the chat template cannot render the turns.
        """
        if not apart and (known := self._known.get((tuple(turns), id(kwargs), generation))) is not None:
            return known
        texts, seam = broken([text for turn in turns for text in (turn.content, turn.extra)], self.spelled)
        if apart:
            seam = seam or unused_in(texts)
            texts[::2] = [seam.join(text.replace(seam, "")) for text in texts[::2]]
        parts = [Turn(turn.role, *pair) for turn, *pair in zip(turns, texts[::2], texts[1::2], strict=True)]
        try:
            text = self._apply(parts, kwargs, generation)
        except (TemplateError, TypeError, ValueError) as error:
            roles = [turn.role for turn in turns]
            raise ConfigError(
                f"The tokenizer's chat template cannot render the roles {roles}: {error}. Another context.template "
                "may fit it: prior_turn needs assistant turns, the acl_ ones a system message (as data.system does)."
            ) from error
        return text.split(seam) if seam else [text]

    def text(self, turns: Sequence[Turn], kwargs: dict[str, Any], *, generation: bool) -> str:
        """Write a conversation as one text; see :meth:`pieces`."""
        return "".join(self.pieces(turns, kwargs, generation=generation))

    def with_arguments(self, kwargs: dict[str, Any]) -> Render:
        """Return a function that writes turns with these template arguments, up to the next header where asked."""
        return lambda turns, generation: self.text(turns, kwargs, generation=generation)

    @contextlib.contextmanager
    def ahead(self, rows: Iterable[tuple[Sequence[Turn], str]], kwargs: dict[str, Any]) -> Iterator[Iterable[str]]:
        """Write many conversations together, and keep them inside; yields their pieces.

        Args:
            rows: Turns with the answer to them; an empty answer: the prompt alone is asked for.
            kwargs: Arguments of the template.
        """
        before, written = self._known, dict[Conversation, list[str]]()
        for turns, answer in rows:
            with contextlib.suppress(ConfigError):  # said when the row itself is asked for
                written[tuple(turns), id(kwargs), True] = self.pieces(turns, kwargs, generation=True)
                if answer:
                    said = (*turns, Turn("assistant", answer))
                    written[said, id(kwargs), False] = self.pieces(said, kwargs, generation=False)
        self._known = {**before, **written}
        try:
            yield (piece for pieces in written.values() for piece in pieces)
        finally:
            self._known = before

    def settle(self, read: Callable[[], Result]) -> Result:
        """Find out how the template takes texts: as they are or, of models that see pictures, as parts of a message.

        Args:
            read: Reads what the template writes; raises a ConfigError where it leaves texts out, or fails.

        Raises:
            ConfigError: As ``read`` does, of texts as they are, if it does so either way.
        """
        try:
            return read()
        except ConfigError:
            self._in_parts = True
            with contextlib.suppress(ConfigError):
                return read()
            raise

    def _apply(self, turns: Sequence[Turn], kwargs: dict[str, Any], generation: bool) -> str:
        messages, tools = messages_of(turns)
        if self._in_parts:
            messages = [{**each, "content": _as_parts(each["content"])} for each in messages]
        if tools is not None:
            kwargs = {**kwargs, "tools": tools}
        if self.date:
            source = self._tokenizer.get_chat_template(kwargs.get("chat_template"), kwargs.get("tools"))
            if reads_clock(source):
                kwargs = {**kwargs, "chat_template": at_moment(source, self._moment)}
        asked: dict[str, Any] = {"tokenize": False, "add_generation_prompt": generation, **kwargs}
        try:
            return str(self._tokenizer.apply_chat_template(messages, **asked))
        except TypeError:  # some templates take the arguments of calls as JSON text (DeepSeek)
            return str(self._tokenizer.apply_chat_template(with_arguments_as_text(messages), **asked))


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}] if text else []


def _moment(date: str) -> datetime:
    try:
        return datetime.fromisoformat(date)
    except ValueError as error:
        raise ConfigError(f"context.date={date!r} is no date. Fix: as in 2026-11-28.") from error
