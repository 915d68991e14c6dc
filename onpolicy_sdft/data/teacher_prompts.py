"""The teacher's prompts of a data set: what is shown besides each question, cut so that it fits.

What may be cut goes in this order: other examples, the farthest first; the end of the student's own attempt, where one
is shown; the end of the demonstration (or of the one other example that is left, where only others are shown). The
question, what a check says and the header of the answer stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from onpolicy_sdft.data.chat_template import ANSWER, QUESTION
from onpolicy_sdft.data.neighbours import choose_neighbours
from onpolicy_sdft.data.templates import (
    PRIOR_TURN,
    PRIVILEGED,
    TEMPLATES,
    TeacherContext,
    feedback_turns,
    last_question,
    shows_own,
)
from onpolicy_sdft.errors import ConfigError, DataError
from onpolicy_sdft.types import Demonstration, Feedback, Turn

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import ContextConfig
    from onpolicy_sdft.data.renderer import Renderer


#: Less of an attempt than this is not worth showing: the demonstration is cut instead.
_LEAST_ATTEMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Fitted:
    """A teacher's prompt that fits, and what that took."""

    token_ids: tuple[int, ...]
    num_trimmed_tokens: int  # cut off the end of the demonstration that is shown
    num_dropped_examples: int  # other examples left out
    num_cut_tokens: int = 0  # cut off the end of the student's own attempt


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a chat template leaves out of a prompt, such as the reasoning of old turns or a whole system message."""

    example_id: str
    num_characters: int  # left out
    num_given: int  # characters of all turns


@dataclass(frozen=True, slots=True)
class Shown:
    """What the teacher is shown of a row of the data set."""

    fitted: Fitted | None  # None: nothing makes it fit
    left_out: LeftOut | None
    num_tokens: int = 0  # with nothing cut, where nothing makes it fit


#: Of a method that asks no teacher.
NO_TEACHER = Shown(Fitted((), 0, 0), None)


def left_out(renderer: Renderer, demonstration: Demonstration, turns: Sequence[Turn] | None = None) -> LeftOut | None:
    """Compare a prompt with its turns; None where the chat template writes them all.

    Args:
        renderer: Writes the prompt.
        demonstration: Whose prompt it is.
        turns: Of the teacher's prompt; None: the bare one is meant.
    """
    said = demonstration.turns if turns is None else turns
    num = renderer.num_left_out(said, teacher=turns is not None)
    given = sum(len(turn.content.strip()) for turn in said)
    return LeftOut(demonstration.example_id, num, given) if num else None


class TeacherPrompts:
    """Makes the teacher's prompts.

    Args:
        demonstrations: The data set; other examples are chosen from it.
        renderer: Turns conversations into tokens.
        config: What is shown and how, and the longest prompt.
        seed: Of the choice of other examples.
        work: What the task says the work of an answer is.

    Raises:
        ConfigError: If the template cannot serve.
        DataError: If only others are to be shown, and a question has none.
    """

    def __init__(
        self,
        demonstrations: Sequence[Demonstration],
        renderer: Renderer,
        config: ContextConfig,
        seed: int,
        work: Callable[[Demonstration], str],
    ) -> None:
        self._renderer, self._work, self._limit = renderer, work, config.max_teacher_tokens
        self._context = TeacherContext(config.template, config.show)
        example = Demonstration("", (Turn("user", QUESTION),), ANSWER)
        for turn in self._context.turns(example, ANSWER, [example]):
            if name := renderer.spelled_in(turn.content):
                raise ConfigError(
                    f"context.template={config.template!r} spells the control token {name!r}, which only the chat "
                    "template may write. Fix: take it out; turns are marked by the chat template."
                )
        self._shows_own = shows_own(config.show)
        self._refuse_privileged(demonstrations, config)
        self._num_kept_examples = int(config.show == "others")  # without any, the teacher would know nothing more
        num_others = {"others": config.num_demonstrations, "both": config.num_demonstrations - 1}.get(config.show, 0)
        chosen = choose_neighbours(demonstrations, num_others, config.neighbours, seed)
        self._examples: dict[str, list[Demonstration]] = {}
        for demonstration, indices in zip(demonstrations, chosen, strict=True):
            if len(indices) < self._num_kept_examples:
                raise DataError(
                    f"example {demonstration.example_id!r}: context.show=others, but no other row has another prompt. "
                    "Fix: more rows, or --context.show own."
                )
            self._examples[demonstration.example_id] = [demonstrations[index] for index in indices]

    def _refuse_privileged(self, demonstrations: Sequence[Demonstration], config: ContextConfig) -> None:
        """Refuse to show texts that are no answers as answers."""
        first = next((each for each in demonstrations if each.privileged), None)
        if first is None:
            return
        if config.show in ("others", "both") and not all(each.response for each in demonstrations):
            raise ConfigError(f"context.show={config.show}: rows have no response to show. Fix: --context.show own.")
        if self._shows_own and config.template in (*TEMPLATES, PRIOR_TURN) and config.template != PRIVILEGED:
            raise ConfigError(
                f"context.template={config.template} shows the teacher a text as an answer, but example "
                f"{first.example_id!r} has a text that only the teacher sees (data.privileged_column). Fix: "
                f"--context.template {PRIVILEGED}, or a file of your own."
            )

    def fit(
        self, demonstration: Demonstration, feedback: Feedback | None = None, *, shows_attempt: bool = True
    ) -> Fitted | None:
        """Return the prompt of one of the demonstrations; None where nothing makes it fit.

        Args:
            demonstration: The question, of the data set.
            feedback: What to tell of the student's own attempt at it, if it made one.
            shows_attempt: Whether feedback shows the attempt itself.
        """
        examples = self._examples[demonstration.example_id]
        own = self._own(demonstration)
        ids = partial(self._ids, demonstration, shows_attempt)
        for num_dropped in range(len(examples) - self._num_kept_examples + 1):
            last = examples[num_dropped:]
            if len(whole := ids(own, last, feedback)) <= self._limit:
                return Fitted(whole, 0, num_dropped)
        num_cut = 0
        if feedback is not None and shows_attempt:
            told, num_tokens = feedback, len(self._renderer.text_ids(feedback.attempt))
            shortest = min(_LEAST_ATTEMPT_TOKENS, num_tokens)
            cut = self._cut(told.attempt, lambda text: ids(own, last, replace(told, attempt=text)), shortest)
            if cut is not None:
                return Fitted(cut[0], 0, num_dropped, cut[1])
            attempt = self._renderer.start_of(told.attempt, shortest)
            feedback, num_cut = replace(told, attempt=attempt), num_tokens - shortest
        if own:
            cut = self._cut(own, lambda text: ids(text, last, feedback))
        else:
            cut = self._cut(
                "".join(other.response for other in last),  # of one other example, or of none
                lambda text: ids(own, [replace(other, response=text) for other in last], feedback),
            )
        return None if cut is None else Fitted(*cut, num_dropped, num_cut)

    def show(self, demonstrations: Sequence[Demonstration]) -> list[Shown]:
        """Return the prompts of some of the demonstrations, made together; see :meth:`fit`."""
        whole = [self._turns(each, self._own(each), self._examples[each.example_id]) for each in demonstrations]
        with self._renderer.ahead(((turns, "") for turns in whole), teacher=True):
            return [self._show(each) for each in demonstrations]

    def _show(self, demonstration: Demonstration) -> Shown:
        fitted = self.fit(demonstration)
        if fitted is not None:
            return Shown(fitted, self.left_out(demonstration, fitted))
        own = self._own(demonstration)
        return Shown(
            None, None, len(self._ids(demonstration, False, own, self._examples[demonstration.example_id], None))
        )

    def left_out(self, demonstration: Demonstration, fitted: Fitted) -> LeftOut | None:
        """Compare a prompt with the turns it is made of; None where the chat template writes them all."""
        others = self._examples[demonstration.example_id][fitted.num_dropped_examples :]
        return left_out(self._renderer, demonstration, self._turns(demonstration, self._own(demonstration), others))

    def _own(self, demonstration: Demonstration) -> str:
        return demonstration.shown if self._shows_own else ""

    def _turns(self, demonstration: Demonstration, own: str, examples: Sequence[Demonstration]) -> list[Turn]:
        return self._context.turns(demonstration, own, examples, self._work(demonstration))

    def _ids(
        self,
        demonstration: Demonstration,
        shows_attempt: bool,
        own: str,
        examples: Sequence[Demonstration],
        feedback: Feedback | None,
    ) -> tuple[int, ...]:
        turns = self._turns(demonstration, own, examples)
        if feedback is not None:
            work = self._work(demonstration)
            question = last_question(demonstration.turns)
            turns = feedback_turns(turns, question, feedback, work, shows_attempt=shows_attempt)
        return self._renderer.teacher_ids(turns)

    def _cut(
        self, text: str, shown: Callable[[str], tuple[int, ...]], least: int = 1
    ) -> tuple[tuple[int, ...], int] | None:
        """Cut the end of a text until the prompt that shows it fits.

        Returns:
            The prompt and the number of tokens cut; None where ``least`` tokens are still too many.
        """
        num_tokens = len(self._renderer.text_ids(text))
        kept = num_tokens - (len(shown(text)) - self._limit)
        while kept >= max(1, least):
            part = self._renderer.start_of(text, kept)
            ids = shown(part)
            if part and len(ids) <= self._limit:
                return ids, num_tokens - kept
            kept -= max(1, len(ids) - self._limit)
        return None
