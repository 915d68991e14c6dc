"""The teacher's prompts of a data set: what is shown besides each question, cut so that it fits.

What may be cut goes in this order: other examples, the farthest first; then the end of the demonstration (or of the one
other example that is left, where only others are shown). The question and the header of the answer stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onpolicy_sdft.data.neighbours import choose_neighbours
from onpolicy_sdft.data.templates import TeacherContext, shows_own
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.types import Demonstration

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import ContextConfig
    from onpolicy_sdft.data.views import Renderer


@dataclass(frozen=True, slots=True)
class Fitted:
    """A teacher's prompt that fits, and what that took."""

    token_ids: tuple[int, ...]
    num_trimmed_tokens: int  # cut off the end of the demonstration that is shown
    num_dropped_examples: int  # other examples left out


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
        num_others = {"own": 0, "others": config.num_demonstrations, "both": config.num_demonstrations - 1}[config.show]
        chosen = choose_neighbours(demonstrations, num_others, config.neighbours, seed)
        self._examples: dict[str, list[Demonstration]] = {}
        for demonstration, indices in zip(demonstrations, chosen, strict=True):
            if len(indices) < self._num_kept_examples:
                raise DataError(
                    f"example {demonstration.example_id!r}: context.show=others, but no other row has another prompt. "
                    "Way out: more rows, or --context.show own."
                )
            self._examples[demonstration.example_id] = [demonstrations[index] for index in indices]

    def fit(self, demonstration: Demonstration) -> Fitted | None:
        """Return the prompt of one of the demonstrations; None where nothing makes it fit."""
        examples = self._examples[demonstration.example_id]
        own = demonstration.response if self._shows_own else ""
        for num_dropped in range(len(examples) - self._num_kept_examples + 1):
            ids = self._ids(demonstration, own, examples[num_dropped:])
            if len(ids) <= self._limit:
                return Fitted(ids, 0, num_dropped)
        last = examples[num_dropped:]

        def shown(text: str) -> tuple[int, ...]:
            if own:
                return self._ids(demonstration, text, last)
            return self._ids(demonstration, own, [replace(other, response=text) for other in last])

        cut = self._cut(own or last[0].response, shown)
        return None if cut is None else Fitted(*cut, num_dropped)

    def _ids(self, demonstration: Demonstration, own: str, examples: Sequence[Demonstration]) -> tuple[int, ...]:
        turns = self._context.turns(demonstration, own, examples, self._work(demonstration))
        return self._renderer.teacher_ids(turns)

    def _cut(self, text: str, shown: Callable[[str], tuple[int, ...]]) -> tuple[tuple[int, ...], int] | None:
        """Cut the end of a text until the prompt that shows it fits; return that and the tokens cut, or None."""
        tokens = self._renderer.text_ids(text)
        kept = len(tokens) - (len(shown(text)) - self._limit)
        while kept > 0:
            part = self._renderer.decode(tokens[:kept]).rstrip("\ufffd")  # a character cut in half
            ids = shown(part)
            if part and len(ids) <= self._limit:
                return ids, len(tokens) - kept
            kept -= max(1, len(ids) - self._limit)
        return None
