"""Short programs, checked by running the demonstration's tests."""

from __future__ import annotations

import ast
import json
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onpolicy_sdft.errors import TaskError
from onpolicy_sdft.tasks.code_server import CodeServers
from onpolicy_sdft.tasks.code_text import programs
from onpolicy_sdft.tasks.protocol import Task, bad_field, require_bool, short_message
from onpolicy_sdft.tasks.syntax import COMPLETION, is_python, parse_module
from onpolicy_sdft.types import CheckResult, Demonstration

_FILE_BYTES = 1 << 20
# Addresses and names of temporary directories: a message has to be the same whenever the same program is checked.
_BY_CHANCE = re.compile(r" at 0x[0-9a-f]+|(?<=code-check-)\w+")


def _after(setup: str, code: str) -> str:
    """Put a program behind its setup; imports from ``__future__`` have to stay first."""
    if not setup.strip():
        return code
    tree = parse_module(code)
    assert isinstance(tree, ast.Module)
    first = max((node.end_lineno or 0 for node in tree.body if _is_future(node)), default=0)
    lines = code.split("\n")
    return "\n".join([*lines[:first], setup, *lines[first:]])


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


@dataclass(frozen=True)
class PythonCode(Task):
    """The program in the completion passes the demonstration's tests.

    Rows have a field ``tests_field``: a string of ``assert`` statements, or a list of such strings.
    They may have a field ``setup_field``: what the question gives and the program may use (imports,
    helpers); it runs before the program. Tests run after the program, in its name space, in a
    process of its own (a fork of a small server that never sees a program) with an empty
    environment, a temporary working directory, a fixed hash seed, limits on CPU time, wall time,
    address space and file size, no new processes or threads, and output thrown away. The network is
    off: by an empty network name space where the system permits one to be made, and in any case by
    an audit hook that refuses sockets, processes and writes outside the directory. Started as root,
    the process becomes ``nobody`` where ``nobody`` can read the interpreter; elsewhere (one under
    ``/root``) it stays root, and only the hook stands between the code and new processes.

    This stops accidents, not attacks. It is not a sandbox against a hostile model: the code can
    read what the user can read, an audit hook can be got round, and the verdict comes from the
    process that ran the code. Run models you do not trust in a container or virtual machine without
    secrets.

    Needs Linux for all of its limits; where one cannot be set, the check raises instead of running
    without it.

    Attributes:
        allow_execution: Must be set to run anything.
        cpu_seconds: CPU time of one check, in whole seconds.
        wall_seconds: Wall time of one check, not counting the start of the interpreter.
        memory_mb: Address space of one check, in MiB.
        tests_field: Column of the tests.
        setup_field: Column of what runs before the program, for rows that have it.
        show_tests: How many of a row's tests the question shows, for rows that do not name the
            function otherwise.
    """

    allow_execution: bool = False
    cpu_seconds: int = 2
    wall_seconds: float = 10.0
    memory_mb: int = 512
    tests_field: str = "tests"
    setup_field: str = "setup"
    show_tests: int = 0
    _servers: CodeServers = field(default_factory=CodeServers, init=False, repr=False, compare=False)
    name = "python_code"
    work_wording = "Write the whole program yourself, and handle every case that the question names."

    def __post_init__(self) -> None:
        require_bool(self.name, allow_execution=self.allow_execution)
        shown = self.show_tests
        if not isinstance(shown, int) or isinstance(shown, bool) or shown < 0:
            raise TaskError(f"task {self.name}: option 'show_tests' is {shown!r}; give a whole number, 0 or more")
        for option, least in (("cpu_seconds", 1), ("wall_seconds", 0), ("memory_mb", 64)):
            value = getattr(self, option)
            whole = option != "wall_seconds"
            is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not is_number or value < least or value == 0:
                kind = "a whole number" if whole else "a number"
                raise TaskError(
                    f"task {self.name}: option {option!r} is {value!r}; give {kind} "
                    + (f"of at least {least}" if least else "above 0")
                )

    def ask(self, prompt: str) -> str:
        """Ask for one code block."""
        return f"{prompt}\n\nAnswer with one Python code block."

    def ask_row(self, prompt: str, fields: Mapping[str, Any]) -> str:
        """Ask for one code block that passes the tests shown, if any are to be shown."""
        tests = fields.get(self.tests_field)
        shown = ([tests] if isinstance(tests, str) else list(tests or ()))[: self.show_tests]
        if shown:
            listed = "\n".join(map(str, shown))
            prompt = f"{prompt}\n\nThe code has to pass:\n\n```python\n{listed}\n```"
        return self.ask(prompt)

    def check(self, completion: str, demonstration: Demonstration) -> CheckResult:
        """Run the tests on each program that the completion may be; the first one's faults are told."""
        self._require_execution()
        tests, setup = self._tests(demonstration), self._setup(demonstration)
        tried = programs(completion)
        if not tried:
            return CheckResult(False, "no_code", message="The answer holds no Python program.")
        if not is_python(tried[0]):
            message = short_message(f"The program is not valid Python: {_syntax_error(tried[0])}")
            return CheckResult(False, "syntax_error", tried[0], message)
        wrong: CheckResult | None = None
        for code in tried:
            found = self._run(_after(setup, code), tests)
            if found["status"] == "ok":
                return CheckResult(True, answer=code)
            wrong = wrong or CheckResult(False, found["status"], code, self._message(found))
        assert wrong is not None
        return wrong

    def reference_answer(self, demonstration: Demonstration) -> str:
        """Return the response."""
        return demonstration.response

    def check_demonstration(self, demonstration: Demonstration) -> None:
        """Refuse missing or broken tests, a response without a program, and execution left off.

        The tests are not run: that a response passes is for ``check`` to say.
        """
        self._require_execution()
        self._tests(demonstration)
        self._setup(demonstration)
        found = programs(demonstration.response)
        if not found or not is_python(found[0]):
            raise bad_field(demonstration, "response", "holds no Python program that parses")

    def _require_execution(self) -> None:
        if not self.allow_execution:
            raise TaskError(
                f"task {self.name} runs code that a model wrote, which is off unless asked "
                "for; ask with --task.options '{allow_execution: true}' (limits apply, but it is "
                "not a sandbox)"
            )

    def _tests(self, demonstration: Demonstration) -> list[str]:
        value = demonstration.fields.get(self.tests_field)
        if value is None:
            raise bad_field(demonstration, self.tests_field, "is missing")
        tests = [value] if isinstance(value, str) else value
        if not isinstance(tests, Sequence) or not all(isinstance(test, str) for test in tests):
            raise bad_field(demonstration, self.tests_field, f"is {value!r}, not a string or list of strings")
        for test in tests:
            if not is_python(test):
                raise bad_field(demonstration, self.tests_field, f"has a test that is not Python: {test!r}")
        if not any(test.strip() for test in tests):
            raise bad_field(demonstration, self.tests_field, "holds no test")
        return list(tests)

    def _setup(self, demonstration: Demonstration) -> str:
        setup = demonstration.fields.get(self.setup_field) or ""
        if not isinstance(setup, str) or not is_python(setup):
            raise bad_field(demonstration, self.setup_field, f"is not Python: {setup!r:.200}")
        return setup

    def _run(self, code: str, tests: list[str]) -> dict[str, str]:
        """Return what the process that ran a program reported; its ``status`` is ``ok`` where the tests pass."""
        job: dict[str, object] = {
            "code": code,
            "tests": tests,
            "cpu_seconds": self.cpu_seconds,
            "memory_bytes": self.memory_mb << 20,
            "file_bytes": _FILE_BYTES,
        }
        outcome = self._servers.run(job, self.wall_seconds)
        if outcome is None:
            return {"status": "crashed"}
        if outcome.report:
            try:
                report = json.loads(outcome.report)
                return {"status": str(report.pop("status")), **{name: str(text) for name, text in report.items()}}
            except (ValueError, KeyError, TypeError, AttributeError):  # the code wrote into the report itself
                return {"status": "crashed"}
        if outcome.ended_by is None or outcome.ended_by in (signal.SIGXCPU, signal.SIGKILL):
            return {"status": "timeout"}
        return {"status": "crashed" if outcome.ended_by else "exited"}

    def _message(self, found: Mapping[str, str]) -> str:
        """Word a report of :meth:`_run` for the writer of the program."""
        test, detail = found.get("test", ""), found.get("detail", "")
        match found["status"]:
            case "tests_failed":
                said = detail.removeprefix("AssertionError:").strip()
                lines = [
                    f"This test fails: {test}" if test else "An assertion fails.",
                    f"Here {found['value']}" if "value" in found else "",
                    f"It says: {said}" if said else "",
                ]
            case "error":
                lines = [f"The program fails with {detail}", f"It fails in this test: {test}" if test else ""]
            case "timeout":
                lines = [f"The program did not come to an end within {self.cpu_seconds} seconds."]
            case "memory_limit":
                lines = [f"The program needs more than {self.memory_mb} MiB of memory."]
            case "exited":
                lines = ["The program ends its process before the tests are through."]
            case status:
                lines = [f"The program does not run: {detail or status}"]
        return short_message(*(_BY_CHANCE.sub("", line) for line in lines))


def _syntax_error(code: str) -> str:
    """Say where and why a program does not parse."""
    try:
        ast.parse(code, COMPLETION)
    except SyntaxError as error:
        line = f": {error.text.strip()}" if error.text else ""
        return f"line {error.lineno}{line} ({error.msg})"
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return ""
