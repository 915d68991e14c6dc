"""Why a row is refused, with both texts where they part: what it says and what the chat template makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tool_calls import REASONING

#: Characters of a text in a message.
_SHOWN = 160


def not_a_prefix(asked: str, whole: str, response: str, fix: str) -> str:
    """Say that a bare prompt is not the beginning of the conversation that answers it.

    Args:
        asked: The bare prompt, as the chat template writes it.
        whole: The conversation with its answer.
        response: The answer.
        fix: What would make it so; empty: not known.
    """
    same = num_same(asked, whole)
    start = max(0, same - _SHOWN // 2)
    texts = f"the prompt is {asked[start:][:_SHOWN]!r}, the whole conversation {whole[start:][:_SHOWN]!r}"
    if whole.startswith(asked + response):
        fix = (
            "take blanks off the response (--context.trim_responses true)"
            if response[:1].isspace()
            else fix or "a header (add_generation_prompt) that ends in no blank, in the model's chat_template.jinja"
        )
        return (
            "the end of the prompt and the beginning of the response become other tokens where they stand together: "
            f"{texts}. Fix: {fix}"
        )
    fix = fix or (
        "a chat template whose header (add_generation_prompt) is what it writes before an answer, by "
        "context.student_template_kwargs and context.teacher_template_kwargs, or in the model's chat_template.jinja"
    )
    return f"the chat template writes the prompt otherwise once it is answered: {texts}. Fix: {fix}"


def not_the_response(text: str, response: str) -> str:
    """Say that a target decodes to another text than the response."""
    start = max(0, num_same(text, response) - _SHOWN // 4)
    if text.strip() == response.strip():
        fix = "take the blanks off its ends (--context.trim_responses true)"
    else:
        fix = (
            "write the row as the template does, or change the template (context.student_template_kwargs, or the "
            "model's chat_template.jinja)"
        )
    return (
        f"the chat template and the tokenizer make {text[start:][:_SHOWN]!r} of the response "
        f"{response[start:][:_SHOWN]!r} (from character {start}). Fix: {fix}"
    )


def not_rendered(roles: Sequence[str], error: BaseException) -> str:
    """Say that the chat template does not take a conversation."""
    return (
        f"the chat template cannot render a conversation of the roles {list(roles)}: {error}. Fix: mend the row, or "
        "take a model whose chat template renders it"
    )


def no_tools(name: str, text: str) -> str:
    """Say that a chat template does not write a tool, or a call of it."""
    return (
        f"the chat template does not write the tools of the row: {name!r} does not stand in {text[-_SHOWN:]!r}. Fix: a "
        "model whose chat template takes tools and calls, or write them as text into the messages"
    )


def ends_otherwise(end: str | None, with_tools: str | None) -> str:
    """Say that a chat template ends answers otherwise where there are tools.

    Args:
        end: The token that ends an answer without tools; None: no token of its own.
        with_tools: The one that ends an answer where there are tools.
    """
    return (
        f"the chat template ends an answer with {with_tools or 'no token of its own'} where there are tools and with "
        f"{end or 'no token of its own'} elsewhere (a template named tool_use, or a part of one), and rollouts of a "
        "run end with one of them. Fix: one end in the model's chat_template.jinja, or tools for all rows in "
        "context.student_template_kwargs and context.teacher_template_kwargs {tools: [...]} in place of the column"
    )


def no_reasoning(text: str) -> str:
    """Say that a chat template does not write the reasoning that stands beside an answer."""
    return (
        f"the chat template leaves out the answer's reasoning ({', '.join(REASONING)}) and makes {text[:_SHOWN]!r} of "
        "it. Fix: the template's thinking mode (context.student_template_kwargs and context.teacher_template_kwargs "
        "{enable_thinking: true}), the reasoning as part of the content, or rows without it"
    )


def spells_control(role: str, text: str, name: str) -> str:
    """Say that a turn spells a control token."""
    start = max(0, text.find(name) - _SHOWN // 4)
    return (
        f"the {role}'s text spells the control token {name!r}, which only the chat template may write: "
        f"{text[start:][: _SHOWN // 2]!r}. Fix: take it out of the row"
    )


def require_unicode(text: str, what: str) -> None:
    """Refuse text that no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: JSON can spell it, no tokenizer takes it
        raise DataError(f"{what} holds half a character at position {error.start}") from error


def num_same(one: str, other: str) -> int:
    """Return the number of characters with which both texts begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
