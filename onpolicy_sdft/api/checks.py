"""A function or an object -> the task of a run, under a name that tells it from others; and a check of callbacks."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Any, cast

from onpolicy_sdft.config.load import by_dotted_name
from onpolicy_sdft.config.schema import IN_MEMORY, RunConfig
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.tasks.function import CheckFunction, FunctionTask
from onpolicy_sdft.tasks.loading import require_protocol
from onpolicy_sdft.tasks.protocol import Task

if TYPE_CHECKING:
    from onpolicy_sdft.train.callbacks import Callback

_CALLBACK = ("on_rollouts", "on_step_end", "on_evaluate", "on_save")


def given_task(task: Task | CheckFunction) -> tuple[str, Task]:
    """Return a task object, or a function that checks, under the name that the run keeps it by.

    The name holds a digest of the source, so that a run is not resumed with another check.
    """
    if isinstance(task, type):
        raise ConfigError(f"task={task.__name__} is a class. Fix: an object of it, {task.__name__}(...).")
    made = cast("Task", task) if hasattr(task, "check") else FunctionTask(cast("Any", task))
    require_protocol(made, type(made).__name__)
    said = f"{_said(made.function)} {made.threshold}" if isinstance(made, FunctionTask) else _said(made)
    return f"{IN_MEMORY}{made.name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}", made


def _said(found: Any, seen: frozenset[int] = frozenset()) -> str:
    """Return what an object says of itself, by its source and what it holds; the same in every process.

    Args:
        found: A function, or an object.
        seen: Ids of what it stands in, which is not said again.
    """
    if id(found) in seen:
        return ""
    seen |= {id(found)}
    if isinstance(found, partial):
        return f"{_said(found.func, seen)} {_held([found.args, sorted(found.keywords.items())], seen)}"
    if inspect.isfunction(found):
        cells = [_content(each) for each in found.__closure__ or ()]
        named = _named(found)
        said = f"{_source(found)} {_held([found.__defaults__, found.__kwdefaults__, *cells], seen)}"
        return f"{said} {_held(named, seen)}" if named else said
    if inspect.ismethod(found):
        return f"{_source(found)} {_said(found.__self__, seen)}"
    return f"{_source(type(found))} {_held(sorted(getattr(found, '__dict__', {}).items()), seen)}"


def _held(values: Any, seen: frozenset[int]) -> str:
    """Return values as text, functions among them by what they do, without addresses that differ between processes."""
    text = re.sub(r" at 0x[0-9a-f]+", "", _ordered(values))
    return " ".join([text, *(_said(each, seen) for each in _functions_in(values))])


def _ordered(value: Any) -> str:
    """Return the text of a value; a set's, which has an order of its own in each process, sorted."""
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_ordered, value)))}}}"
    if type(value) in (list, tuple):
        return f"[{', '.join(map(_ordered, value))}]"
    return repr(value)


def _functions_in(value: Any) -> Iterator[Any]:
    """Return the functions among values, such as one that another one wraps."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _functions_in(each)
    elif inspect.isfunction(value) or inspect.ismethod(value) or isinstance(value, partial):
        yield value


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet: a function that names itself
        return None


def _named(function: Any) -> list[tuple[str, Any]]:
    """Return what a function takes from its module by name: constants, and functions that stand beside it."""
    values = getattr(function, "__globals__", {})
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    found = [(name, values[name]) for name in sorted(names) if name in values]
    return [
        (name, value)
        for name, value in found
        if isinstance(value, bool | int | float | str | bytes | tuple | frozenset)
        or (inspect.isfunction(value) and value.__module__ == function.__module__)
    ]


def _source(found: Any) -> str:
    try:
        return inspect.getsource(found)
    except (OSError, TypeError):  # typed at a prompt
        if isinstance(found, type):
            members = sorted((name, each) for name, each in vars(found).items() if inspect.isfunction(each))
            return " ".join([found.__qualname__, *(f"{name} {_said(each)}" for name, each in members)])
        code = getattr(found, "__code__", None)
        return _said_code(code) if code else str(getattr(found, "__qualname__", found))


def _said_code(code: CodeType) -> str:
    """Return what compiled code does, with its constants; without the lines it stood in."""
    constants = [_said_code(each) if isinstance(each, CodeType) else _ordered(each) for each in code.co_consts]
    return repr((code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Return code and all code inside it: of comprehensions, lambdas, inner functions."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def callbacks_of(given: Sequence[Callback] | Callback | None) -> list[Callback]:
    """Return callbacks as they were given: several, one, or none.

    Raises:
        ConfigError: Naming what is no callback.
    """
    if given is None:
        return []
    return [require_callback(each) for each in (given if isinstance(given, Iterable) else [given])]


def require_callback(callback: Callback) -> Callback:
    """Check that an object is a callback before training starts, not after the first step.

    Raises:
        ConfigError: Naming it.
    """
    if isinstance(callback, type) or not all(hasattr(callback, name) for name in _CALLBACK):
        raise ConfigError(
            f"callbacks: {callback!r:.80} is no callback of this package. Fix: an object of a class that is "
            "derived from onpolicy_sdft.Callback."
        )
    return callback


def refuse_unread(config: RunConfig, named: Container[str], argument: str, read: Mapping[str, Any]) -> None:
    """Refuse options that an argument takes the place of, where they say something else.

    Args:
        config: Options as they were given.
        named: Names of those that were given for certain; others count where they are not at their default.
        argument: Name of the argument.
        read: What it makes of each option, by dotted name.

    Raises:
        ConfigError: Naming the first of them.
    """
    given, defaults = by_dotted_name(config), by_dotted_name(RunConfig())
    for name, value in read.items():
        if given[name] != value and (name in named or given[name] != defaults[name]):
            raise ConfigError(
                f"{name}={given[name]!r} of the config has no effect: {argument} is given, and says {value!r}. Fix: "
                f"leave out {name}, or {argument}."
            )
