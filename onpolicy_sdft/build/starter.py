"""A first config for somebody's data: what the rows look like, which task can check them, and how long they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from onpolicy_sdft.config.schema import ContextConfig, DataConfig, ModelConfig
from onpolicy_sdft.data.prepare import Prepared, prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.data.sources import DemonstrationSet, load_demonstrations
from onpolicy_sdft.data.templates import PRIVILEGED
from onpolicy_sdft.errors import SdftError
from onpolicy_sdft.models.load import load_tokenizer, resolve_source
from onpolicy_sdft.tasks import Task, load_task
from onpolicy_sdft.tasks.stated_number import states_number
from onpolicy_sdft.tool_calls import TOOLS
from onpolicy_sdft.types import Demonstration

_TEMPLATE = Path(__file__).with_name("starter.yaml.jinja")
_LOOKED_AT = 500  # rows whose tokens are counted and whose answers are tried with the tasks
_NEARLY_ALL = 0.95  # of the rows have to fit a task
_UNBOUNDED = 1 << 20
_FEW_WORDS = 3


def _is_call(demonstration: Demonstration) -> bool:
    text = demonstration.response.strip()
    return demonstration.turns[0].role == TOOLS or (
        text.endswith((")", "}", "]")) and text.partition("(")[0].replace(".", "").replace("_", "").isalnum()
    )


def _is_short(demonstration: Demonstration) -> bool:
    return len(demonstration.response.split()) <= _FEW_WORDS


#: Tasks that are tried, in this order; what an answer has to look like besides; and what the config says of the task.
_TASKS: Sequence[tuple[str, Mapping[str, Any], Callable[[Demonstration], bool], str]] = (
    ("multiple_choice", {}, lambda row: True, "rows have choices, and the response picks the right one"),
    ("python_code", {"allow_execution": True}, lambda row: True,
     "rows have tests; they run what the model wrote, in a limited subprocess: no protection against a hostile model"),
    ("function_call", {}, _is_call, "responses are function calls"),
    ("math_word_problem", {}, lambda row: states_number(row.response), "responses state a number as their answer"),
    ("exact", {}, _is_short, "responses are a few words, compared as a whole"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Starter:
    """What was found, and the config that goes with it."""

    text: str  # YAML with comments
    num_rows: int
    skipped: tuple[str, ...]
    unread: Mapping[str, int]  # rows by what of theirs was not read
    task: str


def make_starter(data: DataConfig, model: ModelConfig, eval_path: str | None, output_dir: str) -> Starter:
    """Look at rows and write a config for them.

    Args:
        data: Where they are.
        model: Its tokenizer counts.
        eval_path: A file of rows to score on.
        output_dir: Of the run.

    Raises:
        SdftError: If there are no rows that can be read, or no tokenizer.
    """
    seen = load_demonstrations(replace(data, on_bad_row="skip", wording=False), load_task("free_form", {}))
    few = seen.demonstrations[:_LOOKED_AT]
    task, options, why = _find_task(few)
    rows = load_demonstrations(replace(data, on_bad_row="skip"), load_task(task, options))
    # Of texts that are no answers.
    template = PRIVILEGED if any(row.privileged for row in rows.demonstrations) else ContextConfig().template
    lengths = _measure(rows.demonstrations[:_LOOKED_AT], model, template)
    text = _yaml(data, model, eval_path, output_dir, rows, (task, options, why), template, lengths)
    return Starter(text, len(rows.demonstrations), rows.skipped, rows.unread, task)


def _find_task(rows: Sequence[Demonstration]) -> tuple[str, Mapping[str, Any], str]:
    for name, options, looks_so, why in _TASKS:
        task = load_task(name, options)
        if sum(looks_so(row) and _is_checked(task, row) for row in rows) >= _NEARLY_ALL * len(rows):
            return name, options, why
    return "free_form", MappingProxyType({}), "nothing is checked: no task fits nearly all rows"


def _is_checked(task: Task, row: Demonstration) -> bool:
    try:
        task.check_demonstration(row)
        return task.name == "python_code" or task.check(row.response, row).correct  # programs are not run here
    except SdftError:
        return False


def _measure(rows: Sequence[Demonstration], model: ModelConfig, template: str) -> Prepared:
    tokenizer = load_tokenizer(resolve_source(model), model)
    limits = ContextConfig(template=template, max_student_tokens=_UNBOUNDED, max_teacher_tokens=_UNBOUNDED)
    return prepare(rows, Renderer(tokenizer, limits), limits, 0, on_bad_row="skip")


def _longest(lengths: Sequence[int]) -> int:
    """Return the longest length; where a few rows are far longer than nearly all, a bound that leaves those out."""
    return min(max(lengths), 2 * int(np.quantile(lengths, 0.99)))


def _round_up(tokens: float, step: int) -> int:
    return step * max(1, math.ceil(tokens / step))


def _yaml(
    data: DataConfig,
    model: ModelConfig,
    eval_path: str | None,
    output_dir: str,
    rows: DemonstrationSet,
    found: tuple[str, Mapping[str, Any], str],
    template: str,
    lengths: Prepared,
) -> str:
    task, options, why = found
    student, teacher, response = (
        [len(getattr(pair, name)) for pair in lengths.pairs] for name in ("student_ids", "teacher_ids", "response_ids")
    )
    num_rows = len(rows.demonstrations)
    batch_size = min(16, max(1, num_rows // 4))
    plain, left_out = DataConfig(), ("on_bad_row", "wording")
    given = {name: value for name, value in vars(data).items() if value != getattr(plain, name)}
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    environment.filters["round_up"] = _round_up
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        where=rows.where,
        num_rows=num_rows,
        num_skipped=len(rows.skipped),
        model=model.name,
        data={name: value for name, value in given.items() if name not in left_out},
        wording=data.wording,
        task=task,
        task_options=dict(options),
        why=why,
        template=template,
        student=_longest(student),
        teacher=_longest(teacher),
        longest_student=max(student),
        longest_teacher=max(teacher),
        drops=num_rows > len(student) or _longest(student) < max(student) or _longest(teacher) < max(teacher),
        num_measured=len(student),
        median_response=int(np.median(response)),
        long_response=float(np.quantile(response, 0.99)),
        longest_response=max(response),
        output_dir=output_dir,
        batch_size=batch_size,
        max_steps=min(64, max(1, num_rows // batch_size)),
        eval_path=eval_path,
    )
