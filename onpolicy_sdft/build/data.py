"""Config -> demonstrations, prompt pairs and evaluation sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from onpolicy_sdft.build.bundle import ModelBundle, context_window
from onpolicy_sdft.data.eval_sets import EvalSet
from onpolicy_sdft.data.mixing import mix, replayed_id
from onpolicy_sdft.data.preflight import refuse_beyond_window
from onpolicy_sdft.data.prepare import Prepared, prepare
from onpolicy_sdft.data.sources import DemonstrationSet, load_demonstrations
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.machine import num_cores
from onpolicy_sdft.tasks import load_task, work_of
from onpolicy_sdft.tasks.mixed import MixedTask

if TYPE_CHECKING:
    from onpolicy_sdft.config.schema import RunConfig
    from onpolicy_sdft.tasks.protocol import Task


@dataclass(frozen=True, slots=True)
class Data:
    """The demonstrations, their check, and both prompts of each."""

    task: Task
    loaded: DemonstrationSet
    prepared: Prepared


def load_rows(config: RunConfig, tasks: Mapping[str, Task] = MappingProxyType({})) -> tuple[Task, DemonstrationSet]:
    """Load and check the demonstrations: all that can be done before the model is there.

    Args:
        config: Names them and their check.
        tasks: Those that are there already, by name.
    """
    task = load_task(config.task.name, config.task.options, tasks)
    own = load_demonstrations(config.data, task)
    replayed: dict[str, Task] = {}
    others: dict[str, DemonstrationSet] = {}
    for index, source in enumerate(config.replay.sources):
        its = load_task(source.task.name, source.task.options, tasks)
        others[source.label] = load_demonstrations(source.data, its, section=f"replay.sources[{index}].data")
        replayed |= {replayed_id(source.label, row.example_id): its for row in others[source.label].demonstrations}
    mixed = mix(own, others, config.replay.rate, config.train.seed)
    bare = [row for row in mixed.demonstrations if not row.response]
    for row in bare:
        if not row.privileged:
            raise DataError(
                f"{mixed.where}: row {row.example_id!r} has no response: there is nothing to learn. Fix: "
                "--data.response_column COLUMN, --data.privileged_column COLUMN for a text that only the teacher sees, "
                "or score these rows under eval.sets."
            )
    if bare and learns_demonstrations(config):
        raise DataError(
            f"{mixed.where}: {len(bare)} rows have a text for the teacher but no response, the first is "
            f"{bare[0].example_id!r}, and this method learns responses. Fix: --train.targets policy with "
            "--objective.demonstration_weight 0, or --data.response_column COLUMN."
        )
    return MixedTask(task, replayed) if replayed else task, mixed


def learns_demonstrations(config: RunConfig) -> bool:
    """Whether a method learns demonstrations by themselves, not only in place of refused rollouts."""
    return config.train.targets != "policy" or config.objective.demonstration_weight > 0


def make_prompt_pairs(
    config: RunConfig,
    bundle: ModelBundle,
    task: Task,
    loaded: DemonstrationSet,
    *,
    asks_teacher: bool = True,
    num_local_ranks: int = 1,
) -> Data:
    """Make both prompts of every demonstration fit the configured limits and the model's own context window.

    Args:
        config: Of the run.
        bundle: The model's prompts.
        task: Says what the work of an answer is.
        loaded: The demonstrations.
        asks_teacher: Whether the method has a teacher; without one no row is left out for its prompt.
        num_local_ranks: Processes that prepare the same rows on this machine's cores.
    """
    window = context_window(bundle)
    prepared = prepare(
        loaded.demonstrations, bundle.renderer, config.context, config.train.seed, work_of(task),
        asks_teacher=asks_teacher, on_bad_row=config.data.on_bad_row,
        num_workers=config.data.num_workers or max(1, num_cores() // num_local_ranks), uses_cache=config.data.cache,
        window=window, max_new_tokens=config.rollout.max_new_tokens,
    )  # fmt: skip
    refuse_beyond_window(prepared, config.rollout.max_new_tokens, window)
    return Data(task, loaded, prepared)


def refuse_unaskable(bundle: ModelBundle, sets: Sequence[EvalSet]) -> None:
    """Refuse questions that the chat template cannot render or that do not fit, before any work is done.

    Raises:
        ConfigError: If the chat template fails.
        DataError: If it leaves out a question's tools, or if a question and its longest answer are more than the
            model's context window.
    """
    window = context_window(bundle)
    for questions in sets:
        for question in questions.demonstrations:
            try:
                needed = len(bundle.renderer.student_ids(question.turns)) + questions.max_new_tokens
            except DataError as error:
                place = question.origin or f"question {question.example_id}"
                raise DataError(f"{place} of evaluation set {questions.label!r}: {error}.") from error
            if window is not None and needed > window:
                raise DataError(
                    f"Question {question.example_id} of evaluation set {questions.label!r} needs {needed} positions "
                    f"with its answer, the model has {window}. Lower its max_new_tokens or leave the row out."
                )
