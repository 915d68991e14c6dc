"""Tasks by name, import path or file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, cast

from onpolicy_sdft.config.schema import IN_MEMORY
from onpolicy_sdft.errors import SdftError, TaskError
from onpolicy_sdft.tasks.exact import Exact
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.tasks.function import FunctionTask
from onpolicy_sdft.tasks.function_call import FunctionCall
from onpolicy_sdft.tasks.math_word_problem import MathWordProblem
from onpolicy_sdft.tasks.multiple_choice import MultipleChoice
from onpolicy_sdft.tasks.protocol import Task
from onpolicy_sdft.tasks.python_code import PythonCode
from onpolicy_sdft.tasks.refusal import Refusal

# To add a task of the package, write its file and name its class here.
TASKS: Mapping[str, type[Task]] = MappingProxyType(
    {
        "exact": Exact,
        "free_form": FreeForm,
        "function_call": FunctionCall,
        "math_word_problem": MathWordProblem,
        "multiple_choice": MultipleChoice,
        "python_code": PythonCode,
        "refusal": Refusal,
    }
)

# Members of the protocol with as many arguments as the program passes.
_METHODS = MappingProxyType({"ask": 1, "check": 2, "reference_answer": 1, "check_demonstration": 1})


def load_task(name: str, options: Mapping[str, Any], given: Mapping[str, Task] = MappingProxyType({})) -> Task:
    """Return a task of the package, or one of the user's own.

    Args:
        name: A name of ``TASKS``, or ``package.module:NAME`` or ``path/to/file.py:NAME`` of a class or a function.
        options: Keyword arguments of the task's class; of a function, those of :class:`FunctionTask`.
        given: Tasks that are there already, by name.

    Returns:
        The task, checked to have what the program calls.

    Raises:
        TaskError: Unknown name, a module or file that cannot be imported, a class that is not a
            task, or options it does not take.
    """
    if name in given:
        return given[name]
    if name.startswith(IN_MEMORY):
        raise TaskError(
            f"task {name!r} was an object of the program that made the run, which is not here. Fix: score with that "
            "program, or put the check into a file and name it: --task.name FILE.py:NAME"
        )
    if ":" in name:
        found = _own(name)
        return _build(found if isinstance(found, type) else partial(FunctionTask, found), name, options)
    if name in TASKS:
        return _build(TASKS[name], name, options)
    raise TaskError(
        f"task {name!r} is unknown{_nearest(name, TASKS)}; tasks: {', '.join(TASKS)}; or name a "
        "class or a function of your own as package.module:NAME or path/to/file.py:NAME"
    )


def _nearest(value: str, known: Iterable[str]) -> str:
    near = get_close_matches(value, list(known), n=1, cutoff=0.5)
    return f" (nearest: {near[0]!r})" if near else ""


def _own(name: str) -> Callable[..., Any]:
    """Import the class or function that ``module:NAME`` or ``file.py:NAME`` names."""
    place, _, wanted = name.rpartition(":")
    module = _load_file(place) if place.endswith(".py") else _load_module(place)
    found = getattr(module, wanted, None)
    if not callable(found):
        there = [
            key
            for key, value in vars(module).items()
            if (isinstance(value, type) or inspect.isfunction(value)) and value.__module__ == module.__name__
        ]
        listed = f"; it has {', '.join(there)}" if there else "; it defines none"
        raise TaskError(f"task {name!r}: {place} has no class or function {wanted!r}{_nearest(wanted, there)}{listed}")
    return cast("Callable[..., Any]", found)


def _load_module(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise TaskError(
            f"task module {place!r} cannot be imported: {type(error).__name__}: {error}; a "
            "file is named by its path, as in ./my_checks.py:MyTask"
        ) from error


def _load_file(place: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise TaskError(f"task file {place!r} does not exist ({path}){_nearest(path.name, siblings)}")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]  # two files may share a name
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{digest}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look the module up by its name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise TaskError(f"task file {place!r} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _build(task_class: Callable[..., Any], name: str, options: Mapping[str, Any]) -> Task:
    """Call the class, or what makes a task, with the options and check what comes out."""
    try:
        parameters = dict(inspect.signature(task_class).parameters)
        takes_any = False
    except ValueError:  # a class in C without a signature: its constructor will say
        parameters, takes_any = {}, True
    takes_any = takes_any or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not takes_any:
            known = ", ".join(parameters) or "it has none"
            raise TaskError(
                f"task {name!r} has no option {option!r}{_nearest(str(option), parameters)}; options: {known}"
            )
    missing = sorted(getattr(task_class, "__abstractmethods__", ()))
    if missing:
        raise TaskError(
            f"task {name!r}: class {getattr(task_class, '__name__', '')} does not write {', '.join(missing)}"
        )
    try:
        task = task_class(**options)
    except SdftError:
        raise
    except Exception as error:
        raise TaskError(
            f"task {name!r} cannot be made with options {dict(options)!r}: {type(error).__name__}: {error}"
        ) from error
    require_protocol(task, name)
    return cast(Task, task)


def require_protocol(task: object, name: str) -> None:
    """Refuse an object that lacks what the program calls of a task.

    Args:
        task: To be one.
        name: For the message.

    Raises:
        TaskError: Naming what is missing.
    """
    if not isinstance(getattr(task, "name", None), str):
        raise TaskError(f"task {name!r}: {type(task).__name__} has no text attribute 'name'; give it one")
    for method, num_arguments in _METHODS.items():
        member = getattr(task, method, None)
        if not callable(member):
            raise TaskError(
                f"task {name!r}: {type(task).__name__} has no method {method!r}; a task has name, "
                f"{', '.join(_METHODS)} (derived from onpolicy_sdft.tasks.Task, the last is there)"
            )
        try:
            inspect.signature(member).bind(*[None] * num_arguments)
        except TypeError as error:
            raise TaskError(
                f"task {name!r}: {type(task).__name__}.{method} must take {num_arguments} "
                f"argument(s) besides self: {error}; see onpolicy_sdft.tasks.Task"
            ) from error
