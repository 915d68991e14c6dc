"""The two prompt views of a demonstration, as token ids, through the tokenizer's chat template.

The student sees the bare prompt; the teacher sees it with the demonstration. Both end in the same generation
header, so the answer starts in the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from onpolicy_sdft.data.teacher_prompts import TeacherPrompts
from onpolicy_sdft.errors import ConfigError, DataError
from onpolicy_sdft.types import Demonstration, Turn, Views

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from onpolicy_sdft.config.schema import ContextConfig

_PROBE = "onpolicy sdft probe"


class Renderer:
    """Turns conversations into token ids with one tokenizer.

    Args:
        tokenizer: With a chat template.
        config: Template arguments of both views.

    Raises:
        ConfigError: If the two views would start the answer in different states, or the chat template fails.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ContextConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.terminator_id = self._find_terminator()
        student = self._header(config.student_template_kwargs)
        teacher = self._header(config.teacher_template_kwargs)
        if student != teacher:
            raise ConfigError(
                f"The two views start the answer differently: the student's header is {student!r}, the "
                f"teacher's {teacher!r}. Give context.student_template_kwargs and "
                "context.teacher_template_kwargs the same thinking mode."
            )

    def prompt_ids(self, turns: Sequence[Turn], template_kwargs: dict[str, Any]) -> tuple[int, ...]:
        """Tokenise a conversation up to and including the header of the answer."""
        return tuple(self._ids(self._render(turns, template_kwargs, generation=True)))

    def student_ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Tokenise the bare prompt."""
        return self.prompt_ids(turns, self.config.student_template_kwargs)

    def teacher_ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Tokenise the prompt with the demonstration."""
        return self.prompt_ids(turns, self.config.teacher_template_kwargs)

    def text_ids(self, text: str) -> list[int]:
        """Tokenise plain text, without special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def response_ids(self, response: str) -> tuple[int, ...]:
        """Tokenise an answer as a target: its text and the chat template's own terminator, nothing after."""
        return (*self.text_ids(response), self.terminator_id)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of a completion, special tokens left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _render(self, turns: Sequence[Turn], template_kwargs: dict[str, Any], *, generation: bool) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation, **template_kwargs
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = [turn.role for turn in turns]
            raise ConfigError(
                f"The tokenizer's chat template cannot render the roles {roles}: {error}. Another context.template "
                "may fit it: prior_turn needs assistant turns, the acl_ ones a system message (as data.system does)."
            ) from error
        return str(text)

    def _ids(self, text: str) -> list[int]:
        # The template wrote every special token there is to be: adding more would double the first one.
        ids = self.text_ids(text)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise ConfigError("The chat template writes the beginning-of-text token twice.")
        return ids

    def _header(self, template_kwargs: dict[str, Any]) -> str:
        turns = [Turn("user", _PROBE)]
        bare = self._render(turns, template_kwargs, generation=False)
        return self._render(turns, template_kwargs, generation=True).removeprefix(bare)

    def _find_terminator(self) -> int:
        turns = [Turn("user", "question"), Turn("assistant", _PROBE)]
        text = self._render(turns, self.config.student_template_kwargs, generation=False)
        after = self._ids(text[text.rindex(_PROBE) + len(_PROBE) :])
        special = set(self.tokenizer.all_special_ids)
        if after and after[0] in special:
            return after[0]
        eos: int = self.tokenizer.eos_token_id
        return eos


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data set ready for training, with what the length preflight found."""

    views: tuple[Views, ...]
    dropped_ids: tuple[str, ...]  # examples that cannot fit, left out as configured
    trimmed_ids: tuple[str, ...]  # examples whose shown demonstration was cut
    prompts: TeacherPrompts  # what made the teacher's prompts, for those that tell of an attempt as well


def prepare(
    demonstrations: Sequence[Demonstration],
    renderer: Renderer,
    config: ContextConfig,
    seed: int,
    work: Callable[[Demonstration], str] = lambda demonstration: "",
) -> Prepared:
    """Build both views of every demonstration and make them fit, before any step is taken.

    Args:
        demonstrations: The data set.
        renderer: Turns conversations into tokens.
        config: How the teacher is shown demonstrations, and what has to fit.
        seed: Of the choice of other examples.
        work: What the task says the work of an answer is; see ``Task.work``.

    Raises:
        DataError: If rows cannot fit and ``context.on_too_long`` is ``error``, or a response spells the terminator.
    """
    prompts = TeacherPrompts(demonstrations, renderer, config, seed, work)
    found: list[Views] = []
    too_long: list[tuple[str, int]] = []
    for demonstration in demonstrations:
        student_ids = renderer.student_ids(demonstration.turns)
        response_ids = renderer.response_ids(demonstration.response)
        if renderer.terminator_id in response_ids[:-1]:
            raise DataError(
                f"example {demonstration.example_id!r}: its response spells the terminator "
                f"{renderer.tokenizer.convert_ids_to_tokens(renderer.terminator_id)!r}, which the chat template adds "
                "by itself. Take it out of the row."
            )
        fitted = prompts.fit(demonstration)
        if len(student_ids) > config.max_student_tokens or fitted is None:
            too_long.append((demonstration.example_id, len(student_ids)))
            continue
        found.append(
            Views(
                demonstration,
                student_ids,
                fitted.token_ids,
                response_ids,
                fitted.num_trimmed_tokens,
                fitted.num_dropped_examples,
            )
        )
    if too_long and config.on_too_long == "error":
        listed = ", ".join(f"{name} ({length} tokens)" for name, length in too_long[:5])
        raise DataError(
            f"{len(too_long)} of {len(demonstrations)} rows do not fit in context.max_student_tokens="
            f"{config.max_student_tokens} and context.max_teacher_tokens={config.max_teacher_tokens} even "
            f"with all cut that may be cut: {listed}{', ...' if len(too_long) > 5 else ''}. Raise the limits, "
            "or leave these rows out and count them: --context.on_too_long drop."
        )
    if not found:
        raise DataError("No row fits in context.max_student_tokens and context.max_teacher_tokens.")
    return Prepared(
        views=tuple(found),
        dropped_ids=tuple(name for name, _ in too_long),
        trimmed_ids=tuple(v.demonstration.example_id for v in found if v.num_trimmed_tokens),
        prompts=prompts,
    )
