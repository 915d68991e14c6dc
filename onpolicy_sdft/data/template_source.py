"""The source of a chat template: what it reads, and the clock that it sees.

It is parsed as transformers does, never searched as text: a name may be written, aliased or passed on in any way.
"""

from __future__ import annotations

import functools
import itertools
import json
import string
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from onpolicy_sdft.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from jinja2.parser import Parser
    from transformers import PreTrainedTokenizerBase

#: The function by which chat templates read the clock.
CLOCK = "strftime_now"

#: What every chat template is given, and what transformers takes for itself.
_OF_ALL = {"messages", "add_generation_prompt", "raise_exception", CLOCK}
_OF_TRANSFORMERS = {"chat_template"}
#: What the program gives itself, and what ``apply_chat_template`` would take for how to answer.
_GIVEN = {
    "messages", "conversation", "add_generation_prompt", "continue_final_message", "tokenize", "padding",
    "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
}  # fmt: skip

#: Flags between ``%`` and the letter of a format.
_FLAGS = ("", "-", "_", "0", "^", "#")
#: ``strftime_now`` as a macro, so that every use of it sees one moment. What follows it keeps its first line break.
_MACRO = (
    "{{% macro " + CLOCK + "(format) %}}{{% set parts = {parts} %}}{{% set at = namespace(code='') %}}"
    "{{% for char in format %}}{{% if at.code or char == '%' %}}{{% set at.code = at.code ~ char %}}"
    "{{% if at.code in parts %}}{{{{ parts[at.code] }}}}{{% set at.code = '' %}}"
    "{{% elif at.code|length > 2 %}}{{{{ at.code }}}}{{% set at.code = '' %}}{{% endif %}}"
    "{{% else %}}{{{{ char }}}}{{% endif %}}{{% endfor %}}{{{{ at.code }}}}{{% endmacro %}}{{{{ '' }}}}"
)


class _Generation(Extension):
    """The block that transformers adds to Jinja: it marks what an assistant says."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
)


def sources_of(tokenizer: PreTrainedTokenizerBase, *arguments: Mapping[str, Any]) -> list[str]:
    """Return the chat templates that a tokenizer may render with: its own, by name where there are several.

    Args:
        tokenizer: With a chat template.
        *arguments: Template arguments, of which ``chat_template`` takes the place of the tokenizer's.
    """
    own: Any = tokenizer.chat_template
    named = own if isinstance(own, Mapping) else {"default": own}
    given = [each["chat_template"] for each in arguments if isinstance(each.get("chat_template"), str)]
    if not given or len(given) < len(arguments):
        return [each for each in named.values() if isinstance(each, str)] + [named.get(each, each) for each in given]
    return [named.get(each, each) for each in given]


@functools.lru_cache(maxsize=32)
def names_read(source: str) -> frozenset[str]:
    """Return the names that a chat template looks up in what it is given.

    Raises:
        ConfigError: If it is no template.
    """
    try:
        return frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(source)))
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"The chat template has an error of its own in line {error.lineno}: {error.message}. Fix: the "
            "chat_template of the model's tokenizer (chat_template.jinja, or tokenizer_config.json)."
        ) from error


def reads_clock(source: str) -> bool:
    """Whether a chat template may write the date."""
    return CLOCK in names_read(source)


@functools.lru_cache(maxsize=32)
def at_moment(source: str, moment: datetime) -> str:
    """Return a chat template that writes the date of one moment, whenever it is rendered."""
    codes = (f"%{flag}{letter}" for flag, letter in itertools.product(_FLAGS, string.ascii_letters))
    parts = {"%%": "%", **{code: moment.strftime(code) for code in codes}}
    return _MACRO.format(parts=json.dumps(parts)) + source


def refuse_unread(option: str, arguments: Mapping[str, Any], sources: list[str]) -> None:
    """Refuse template arguments that no chat template reads.

    Args:
        option: Which they are given by.
        arguments: By name.
        sources: The chat templates that are rendered with them.

    Raises:
        ConfigError: Naming the first, and those that are read.
    """
    read = set[str]().union(*map(names_read, sources))
    for name, value in arguments.items():
        if name in _GIVEN:
            raise ConfigError(
                f"{option} has {name}={value!r:.80}, which the program gives itself, row by row. Fix: leave {name} out."
            )
        if name in read or name in _OF_TRANSFORMERS:
            continue
        known = sorted(each for each in read - _OF_ALL if not each.endswith("_token"))
        listed = f"it reads {', '.join(known)}" if known else "it reads none"
        fix = (
            "a model whose chat template takes tools, or write them as text into the messages"
            if name == "tools"
            else f"leave {name} out of {option}"
        )
        raise ConfigError(
            f"{option} has {name}={value!r:.80}, which the model's chat template does not read: {listed}."
            f"{did_you_mean(name, known)} Fix: {fix}."
        )
