"""What a task is, and how its checks read the fields of a demonstration."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from threading import Lock
from typing import Any, Protocol

from onpolicy_sdft.errors import DataError, SdftError, TaskError
from onpolicy_sdft.types import CheckResult, Demonstration, T

#: Bounds of the message of a check: a model is to read it beside the question and its own attempt.
MESSAGE_LINES, LINE_CHARACTERS = 5, 240

#: Reason of a text whose check raised.
CHECK_ERROR = "check_error"
_NOISY_DIGITS, _LARGEST_DENOMINATOR, _MAX_ULPS = 14, 10_000, 4  # of a float that arithmetic has made
_FEW_ERRORS = 8  # that many say nothing about a share


class Task(Protocol):
    """What "right" means for one kind of question: its wording, its check, an answer that passes.

    A task of your own is any class with these members; deriving it from this one supplies
    ``check_demonstration``, ``ask_row``, ``needs_response``, ``has_check``, ``check_is_quick``, ``work_wording``,
    ``work`` and ``note``, which may be left out.
    Its constructor takes the options of ``task.options`` by keyword.
    """

    name: str
    #: False for a task whose check needs no expert's answer: rows may then have no response column.
    needs_response: bool = True
    #: False for a task that accepts any text: rollouts are then judged by what the model makes of them.
    has_check: bool = True
    #: True for a check of a little pure Python: it is run at once. Others run in threads, beside what is written. A
    #: class derived from such a task whose own check takes long says False again.
    check_is_quick: bool = False
    #: What the work of an answer is, as a sentence to the one who writes it ("Write every calculation ..."): shown to a
    #: teacher whose context template asks for the work. It says nothing of the answer itself.
    work_wording: str = ""

    def work(self, demonstration: Demonstration) -> str:
        """Say what the work of answering this demonstration's question is; empty: nothing beyond the question."""
        return self.work_wording

    @property
    def note(self) -> str:
        """What a reader of this task's scores has to know; printed under their tables."""
        return ""

    @abstractmethod
    def ask(self, prompt: str) -> str:
        """Word the user turn.

        Args:
            prompt: The bare question.

        Returns:
            The question with what the check expects of an answer.
        """

    def ask_row(self, prompt: str, fields: Mapping[str, Any]) -> str:
        """Word the user turn of a row: what ``ask`` says, unless the question shows other columns as well.

        Args:
            prompt: The bare question.
            fields: The row's other columns.
        """
        return self.ask(prompt)

    @abstractmethod
    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        """Say whether a completion answers the demonstration's question.

        Args:
            completion: Text the model wrote, without template tokens.
            demonstration: The question with the expert's answer.

        Returns:
            The verdict, with a short countable reason when it is wrong, and a message (see :func:`short_message`) to a
            writer who is to try again.

        Raises:
            DataError: The demonstration cannot be checked (see ``check_demonstration``).
            TaskError: The check cannot run.
        """

    @abstractmethod
    def reference_answer(self, demonstration: Demonstration) -> str:
        """Return an answer that passes ``check``.

        Args:
            demonstration: The question with the expert's answer.

        Returns:
            The answer as a completion would state it.
        """

    def check_demonstration(self, demonstration: Demonstration) -> None:
        """Refuse a demonstration that ``check`` could not judge; called before any work is done.

        Args:
            demonstration: The question with the expert's answer.

        Raises:
            DataError: A field is missing or malformed, or the response holds no answer.
            TaskError: The check cannot run at all with these options.
        """
        return


def has_check(task: Task, demonstration: Demonstration) -> bool:
    """Whether a task tells right from wrong answers to a demonstration's question."""
    of_row = getattr(task, "task_of", None)  # several tasks in one, see mixed.py
    return bool(getattr(of_row(demonstration) if of_row else task, "has_check", True))


class Checker:
    """A task's check that does not end the run: what it raises is a verdict, ``check_error``, with the error's text.

    Errors that say what to do (a row that cannot be checked, a check that cannot run) are raised as they are.

    Args:
        task: What a right answer is.
        max_errors: Largest share of checks that may raise; a few may in any case.

    Raises:
        TaskError: On a call, when more of them have raised.
    """

    def __init__(self, task: Task, max_errors: float = 0.1) -> None:
        self.task = task
        self.max_errors = max_errors
        self.num_checks = self.num_errors = 0
        self._lock = Lock()

    @property
    def is_quick(self) -> bool:
        """Whether a check takes so little time that threads would only take turns."""
        return bool(getattr(self.task, "check_is_quick", False))

    def __call__(self, text: str, demonstration: Demonstration) -> CheckResult:
        """Check one text."""
        failed: Exception | None = None
        try:
            result = self.task.check(text, demonstration)
        except SdftError:
            raise
        except Exception as error:
            failed, said = error, f"{type(error).__name__}: {error}"
            message = short_message(f"The answer could not be checked: {said}")
            result = CheckResult(False, CHECK_ERROR, said[:LINE_CHARACTERS], message)
        with self._lock:
            self.num_checks += 1
            self.num_errors += failed is not None
            num_errors, num_checks = self.num_errors, self.num_checks
        if failed is not None and num_errors > max(_FEW_ERRORS, self.max_errors * num_checks):
            raise TaskError(
                f"task {self.task.name}: {num_errors} of {num_checks} checks failed with an error of their own, the "
                f"last one, of example {demonstration.example_id!r}, with {result.answer}. Fix: mend the task's check; "
                f"in training, screening.max_check_errors (here {self.max_errors:g}) is the share that is allowed."
            ) from failed
        return result

    def all(
        self, texts: Sequence[str], demonstrations: Sequence[Demonstration], num_workers: int = 0
    ) -> list[CheckResult]:
        """Check several texts; see :meth:`map`."""
        return self.map(self, num_workers, texts, demonstrations)

    def map(self, function: Callable[..., T], num_workers: int, *columns: Sequence[Any]) -> list[T]:
        """Return what a function that checks gives, in order; several are called at once where a check takes long.

        Args:
            function: Called with one value of each column.
            num_workers: Calls at once; 0: one after the other.
            *columns: Of one length.
        """
        if num_workers and not self.is_quick:
            with ThreadPoolExecutor(num_workers, "check") as workers:
                return list(workers.map(function, *columns))
        return list(map(function, *columns))


def work_of(task: Task) -> Callable[[Demonstration], str]:
    """Return what says a task's work of each demonstration; one of the user's own need not say any."""
    return getattr(task, "work", lambda demonstration: getattr(task, "work_wording", ""))


def short_message(*lines: str) -> str:
    """Return what a check has found as a few short lines; what is left out of a line is marked.

    Args:
        *lines: Of any length, the most telling first; empty ones are left out.
    """
    plain = [" ".join(line.split()) for line in lines if line.strip()][:MESSAGE_LINES]
    return "\n".join(line if len(line) <= LINE_CHARACTERS else f"{line[: LINE_CHARACTERS - 4]} ..." for line in plain)


def reference_text(demonstration: Demonstration, field: str) -> str:
    """Return the bare answer of a demonstration: the field if the row has it, else the response.

    Args:
        demonstration: The question with the expert's answer.
        field: Name of the column of bare answers.

    Returns:
        The answer as text.

    Raises:
        DataError: The field holds something other than text or a number.
    """
    value = demonstration.fields.get(field)
    if value is None:
        return demonstration.response
    if isinstance(value, str):
        return value
    number = number_in_field(demonstration, field)
    if number is None:
        raise bad_field(demonstration, field, f"is {value!r}, not text or a number")
    # A column of whole numbers with a gap is one of floats in Parquet and CSV: 12.0 is 12.
    if number.denominator == 1:
        return str(number.numerator)
    return str(float(number)) if isinstance(value, float) else str(value)  # without the noise of arithmetic


def number_in_field(demonstration: Demonstration, field: str) -> Fraction | None:
    """Return the value of a field that holds a number; None where it holds something else, or nothing.

    Args:
        demonstration: The question with the expert's answer.
        field: Name of the column of bare answers.

    Raises:
        DataError: The field holds a number without a value.
    """
    value = demonstration.fields.get(field)
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return None
    try:
        return _without_noise(value, Fraction(str(value)))  # as it is written: 0.1 is a tenth
    except (ValueError, OverflowError):
        raise bad_field(demonstration, field, f"is {value!r}, not a number with a value") from None


def _without_noise(value: Any, written: Fraction) -> Fraction:
    """Return the number that a float of many digits comes from: 0.1 + 0.2 is 0.3, and 2 / 3 is two thirds."""
    if not isinstance(value, float) or len(str(written.numerator)) < _NOISY_DIGITS:
        return written
    near = written.limit_denominator(_LARGEST_DENOMINATOR)
    return near if abs(float(near) - value) <= _MAX_ULPS * math.ulp(value) else written


def bad_field(demonstration: Demonstration, field: str, problem: str) -> DataError:
    """Return the error for a field that a check cannot use; the problem starts with a verb."""
    return DataError(f"example {demonstration.example_id!r}: field {field!r} {problem}; mend the row or leave it out")


def require_bool(task: str, **options: object) -> None:
    """Refuse options that are not true or false, such as the text ``"false"``.

    Args:
        task: Name of the task, for the message.
        **options: The values by option name.

    Raises:
        TaskError: A value is not a bool.
    """
    for option, value in options.items():
        if not isinstance(value, bool):
            raise TaskError(f"task {task}: option {option!r} is {value!r}; give true or false")
