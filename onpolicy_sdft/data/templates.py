"""How the teacher is shown the demonstration: named context templates, or a Jinja file of your own.

A template rewrites the last user turn (and may set the system message). It sees ``question``,
``demonstration`` (empty where it is not to be shown), ``examples`` (other rows of the data set, each with ``question``
and ``response``) and ``work`` (what the task says the work of an answer is; empty where it says nothing).
A small model that is shown an answer likes to repeat its end. ``work``, ``solution_first`` and ``explain`` ask for the
way there instead: the demonstration is there to check against, or stands before the question, or is explained first.
Sources: ``acl_*`` are the prompts of Yang et al. (ACL 2024, arXiv:2402.13669, released templates), without the
forced first words of the gsm8k one, which would start the teacher's answer in another state than the
student's; ``example`` follows Shenfeld et al. (2026, arXiv:2601.19897).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.nodes import TemplateData
from jinja2.sandbox import SandboxedEnvironment

from onpolicy_sdft.errors import ConfigError, did_you_mean
from onpolicy_sdft.tool_calls import TOOLS
from onpolicy_sdft.types import Demonstration, Feedback, Turn

PRIOR_TURN = "prior_turn"
#: Of texts that are no answers, see ``data.privileged_column``.
PRIVILEGED = "privileged"

#: What the teacher is shown besides the question; see ``context.show``.
Show = Literal["own", "others", "both", "none"]

_EXAMPLES = (
    "{% for example in examples %}Another question:\n{{ example.question }}\n\n"
    "Its answer:\n{{ example.response }}\n\n{% endfor %}"
)
_WORK = "{% if work %} {{ work }}{% endif %}"


def _own(text: str) -> str:
    """Say something only where the question's own demonstration is shown."""
    return "{% if demonstration %}" + text + "{% endif %}"


@dataclass(frozen=True, slots=True)
class ContextTemplate:
    """Jinja sources of the teacher's last user turn and, where given, of its system message."""

    user: str
    system: str | None = None


def _instruction(system: str) -> ContextTemplate:
    """The layout of two of the ACL-2024 prompts."""
    shown = _own("\n\n### Reference Answer:\n{{ demonstration }}")
    bare = "{% if not demonstration %}Below is an instruction that describes a task. Write a response.{% endif %}"
    return ContextTemplate(
        _EXAMPLES + "### Instruction:\n{{ question }}" + shown + "\n\n### Response:", system=_own(system) + bare
    )


TEMPLATES: dict[str, ContextTemplate] = {
    "reference": ContextTemplate(
        _EXAMPLES
        + "{{ question }}"
        + _own(
            "\n\nReference answer:\n{{ demonstration }}\n\n"
            "Using the reference answer as a guide, write your own response to the question."
        )
    ),
    "example": ContextTemplate(
        _EXAMPLES
        + "{{ question }}"
        + _own(
            "\n\nThis is an example of a response to the question:\n{{ demonstration }}\n\n"
            "Now answer with a response of your own."
        )
    ),
    "work": ContextTemplate(
        _EXAMPLES
        + "{{ question }}\n\n"
        + _own("A solution, to check against:\n{{ demonstration }}\n\n")
        + "Solve it yourself, with every step."
        + _WORK
        + _own(
            " Compare with the solution only to find your own mistakes, and do not mention it: "
            "the reader has the question alone."
        )
    ),
    "solution_first": ContextTemplate(
        _EXAMPLES
        + _own("The solution of the next question, to check against and not to mention:\n{{ demonstration }}\n\n")
        + "Now solve the next question yourself, with every step."
        + _WORK
        + "\n\n{{ question }}"
    ),
    "explain": ContextTemplate(
        _EXAMPLES
        + "{{ question }}\n\n"
        + _own("This is how somebody else answered:\n{{ demonstration }}\n\n")
        + "First explain in your own words"
        + _own(", to a reader who has not seen that answer,")
        + " how the question is solved."
        + _WORK
        + " Only then state your answer, in the form that the question asks for."
    ),
    PRIVILEGED: ContextTemplate(
        _EXAMPLES
        + "{{ question }}"
        + _own(
            "\n\nThis is for you alone:\n{{ demonstration }}\n\n"
            "Answer with the help of it, and do not mention it: the reader has the question alone."
        )
    ),
    "acl_gsm8k": ContextTemplate(
        _EXAMPLES + "{{ question }}" + _own("\n\n{{ demonstration }}"),
        system="You are an expert in math. "
        + _own(
            "Below are a math question and its reference answer. "
            "Refer to the reference answer and write a response that appropriately answers the question."
        ),
    ),
    "acl_openfunctions": _instruction(
        "Below are an instruction that describes a task along with a reference answer. "
        "Refer to the reference answer and write your own response."
    ),
    "acl_alpaca": _instruction(
        "Below are an instruction that describes a task along with a reference answer. "
        "Using the reference answer as a guide, write your own response."
    ),
}


class TeacherContext:
    """Builds the teacher's conversation for a demonstration.

    Args:
        template: A name of ``TEMPLATES``, ``prior_turn``, or the path of a Jinja file.
        show: What it is shown besides the question: its ``own`` demonstration, those of ``others``, ``both``, ``none``.

    Raises:
        ConfigError: If there is no such template, or the file does not compile or leaves out what is to be shown.
    """

    def __init__(self, template: str, show: Show = "own") -> None:
        self.name = template
        self._user = self._system = None
        if template == PRIOR_TURN:
            return
        source = TEMPLATES.get(template) or _from_file(template)
        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
        try:
            self._user = environment.from_string(source.user)
            self._system = environment.from_string(source.system) if source.system else None
        except TemplateError as error:
            raise ConfigError(f"context.template={template!r} does not compile: {error}") from error
        needed = {"own": ["demonstration"], "others": ["examples"], "both": ["demonstration", "examples"], "none": []}
        there = meta.find_undeclared_variables(environment.parse(source.user))
        for name in ["question", *needed[show]]:
            if name not in there:
                raise ConfigError(
                    f"context.template={template!r} must show {{{{ {name} }}}} somewhere (context.show={show})."
                )

    def turns(
        self, demonstration: Demonstration, shown: str, examples: Sequence[Demonstration], work: str = ""
    ) -> list[Turn]:
        """Return the teacher's conversation up to the answer.

        What it is shown stands in the last user turn: behind that, calls and what tools returned are as they were.

        Args:
            demonstration: The example being answered.
            shown: Its response as shown, possibly trimmed; empty: it is not shown.
            examples: Other rows of the data set.
            work: What the task says the work of an answer is.
        """
        before, asked = _parted(demonstration.turns)
        question = asked[0]
        if self._user is None:
            others = [turn for other in examples for turn in _exchange(other)]
            first = list(takewhile(lambda turn: turn.role in (TOOLS, "system"), before))
            own = [*asked, Turn("assistant", shown)] if shown else []
            return [*first, *others, *before[len(first) :], *own, *asked]
        others_text = [{"question": last_question(other.turns), "response": other.response} for other in examples]
        values = {"question": question.content, "demonstration": shown, "examples": others_text, "work": work}
        try:
            content = self._user.render(values)
            if self._system is not None:
                before = [turn for turn in before if turn.role != "system"]
                before.insert(0, Turn("system", self._system.render(values).strip()))
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise ConfigError(f"context.template={self.name!r} cannot be rendered: {error}") from error
        return [*before, replace(question, content=content), *asked[1:]]


def template_wording(template: str) -> str:
    """Return what a context template itself says to the teacher, with a full stop at every gap that it fills."""
    if template == PRIOR_TURN:
        return ""
    source = TEMPLATES.get(template) or _from_file(template)
    nodes = SandboxedEnvironment().parse(f"{source.system or ''}\n{source.user}").find_all(TemplateData)
    return " . ".join(node.data for node in nodes)


def feedback_turns(
    turns: Sequence[Turn], question: str, feedback: Feedback, work: str = "", *, shows_attempt: bool = True
) -> list[Turn]:
    """Go on with a teacher's conversation: its attempt as an answer, then what the check says, and the question again.

    The question stands last, as it does in the bare prompt: a small model goes on with what it read last, and would go
    on with the message.

    Args:
        turns: What :meth:`TeacherContext.turns` returned.
        question: The question once more.
        feedback: What to tell; its attempt may have been cut.
        work: What the task says the work of an answer is.
        shows_attempt: Without it the check's message stands behind the question.

    Source: the prompt of SDPO (arXiv:2601.20802) tells the same: feedback, and an attempt that is right.
    """
    parts = [f"{'That' if shows_attempt else 'Your first'} answer was checked:\n{feedback.message}"]
    if feedback.sibling:
        parts.append(f"Another answer of yours is right:\n{feedback.sibling}")
    again = "Answer the question once more, from the start and complete, without a word about an earlier answer."
    parts += [f"{again} {work}".rstrip(), question]
    told = "\n\n".join(parts)
    if not shows_attempt:
        before, asked = _parted(turns)
        return [*before, replace(asked[0], content=f"{asked[0].content}\n\n{told}"), *asked[1:]]
    return [*turns, Turn("assistant", feedback.attempt or "(no answer)"), Turn("user", told)]


def last_question(turns: Sequence[Turn]) -> str:
    """Return what a user asked last."""
    return _parted(turns)[1][0].content


def shows_own(show: Show) -> bool:
    """Whether the teacher sees the question's own demonstration."""
    return show in ("own", "both")


def _exchange(demonstration: Demonstration) -> list[Turn]:
    return [*_parted(demonstration.turns)[1], Turn("assistant", demonstration.response)]


def _parted(turns: Sequence[Turn]) -> tuple[list[Turn], list[Turn]]:
    """Part a conversation before its last user turn; before its last turn, where no user says anything."""
    places = (place for place in range(len(turns) - 1, -1, -1) if turns[place].role == "user")
    place = next(places, len(turns) - 1)
    return list(turns[:place]), list(turns[place:])


def _from_file(template: str) -> ContextTemplate:
    path = template_file(template)
    assert path is not None
    try:
        return ContextTemplate(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"context.template={template!r} is not UTF-8: {error}. Fix: save it as UTF-8.") from error


def template_file(template: str) -> Path | None:
    """Return the file that ``context.template`` names; None for a template of the package.

    Raises:
        ConfigError: There is neither.
    """
    path = Path(template).expanduser()
    if template in TEMPLATES or template == PRIOR_TURN:
        return None
    if path.is_file():
        return path
    names = [*TEMPLATES, PRIOR_TURN]
    raise ConfigError(
        f"context.template={template!r} is neither a template nor a file.{did_you_mean(template, names)} "
        f"There are: {', '.join(sorted(names))}, or the path of a Jinja file."
    )
