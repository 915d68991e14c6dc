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

from onpolicy_sdft.data.neighbours import choose_neighbours
from onpolicy_sdft.data.templates import TeacherContext, feedback_turns, shows_own
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.types import Demonstration, Feedback

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import ContextConfig
    from onpolicy_sdft.data.views import Renderer


#: Less of an attempt than this is not worth showing: the demonstration is cut instead.
_LEAST_ATTEMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Fitted:
    """A teacher's prompt that fits, and what that took."""

    token_ids: tuple[int, ...]
    num_trimmed_tokens: int  # cut off the end of the demonstration that is shown
    num_dropped_examples: int  # other examples left out
    num_cut_tokens: int = 0  # cut off the end of the student's own attempt


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
        self._shows_own = shows_own(config.show)
        self._num_kept_examples = int(config.show == "others")  # without any, the teacher would know nothing more
        num_others = {"others": config.num_demonstrations, "both": config.num_demonstrations - 1}.get(config.show, 0)
        chosen = choose_neighbours(demonstrations, num_others, config.neighbours, seed)
        self._examples: dict[str, list[Demonstration]] = {}
        for demonstration, indices in zip(demonstrations, chosen, strict=True):
            if len(indices) < self._num_kept_examples:
                raise DataError(
                    f"example {demonstration.example_id!r}: context.show=others, but no other row has another prompt. "
                    "Way out: more rows, or --context.show own."
                )
            self._examples[demonstration.example_id] = [demonstrations[index] for index in indices]

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
        own = demonstration.response if self._shows_own else ""
        ids = partial(self._ids, demonstration, shows_attempt)
        for num_dropped in range(len(examples) - self._num_kept_examples + 1):
            last = examples[num_dropped:]
            if len(whole := ids(own, last, feedback)) <= self._limit:
                return Fitted(whole, 0, num_dropped)
        num_cut = 0
        if feedback is not None and shows_attempt:
            told, tokens = feedback, self._renderer.text_ids(feedback.attempt)
            shortest = min(_LEAST_ATTEMPT_TOKENS, len(tokens))
            cut = self._cut(told.attempt, lambda text: ids(own, last, replace(told, attempt=text)), shortest)
            if cut is not None:
                return Fitted(cut[0], 0, num_dropped, cut[1])
            feedback, num_cut = replace(told, attempt=self._start(tokens, shortest)), len(tokens) - shortest
        if own:
            cut = self._cut(own, lambda text: ids(text, last, feedback))
        else:
            cut = self._cut(
                "".join(other.response for other in last),  # of one other example, or of none
                lambda text: ids(own, [replace(other, response=text) for other in last], feedback),
            )
        return None if cut is None else Fitted(*cut, num_dropped, num_cut)

    def _ids(
        self,
        demonstration: Demonstration,
        shows_attempt: bool,
        own: str,
        examples: Sequence[Demonstration],
        feedback: Feedback | None,
    ) -> tuple[int, ...]:
        work = self._work(demonstration)
        turns = self._context.turns(demonstration, own, examples, work)
        if feedback is not None:
            turns = feedback_turns(turns, demonstration.prompt, feedback, work, shows_attempt=shows_attempt)
        return self._renderer.teacher_ids(turns)

    def _cut(
        self, text: str, shown: Callable[[str], tuple[int, ...]], least: int = 1
    ) -> tuple[tuple[int, ...], int] | None:
        """Cut the end of a text until the prompt that shows it fits.

        Returns:
            The prompt and the number of tokens cut; None where ``least`` tokens are still too many.
        """
        tokens = self._renderer.text_ids(text)
        kept = len(tokens) - (len(shown(text)) - self._limit)
        while kept >= max(1, least):
            part = self._start(tokens, kept)
            ids = shown(part)
            if part and len(ids) <= self._limit:
                return ids, len(tokens) - kept
            kept -= max(1, len(ids) - self._limit)
        return None

    def _start(self, tokens: Sequence[int], num_kept: int) -> str:
        return self._renderer.decode(tokens[:num_kept]).rstrip("\ufffd")  # a character cut in half
