from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onpolicy_sdft.errors import DataError, TaskError
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.code_text import programs
from onpolicy_sdft.types import CheckResult, Demonstration, Turn

TASK = load_task("python_code", {"allow_execution": True, "cpu_seconds": 1, "wall_seconds": 2.0})
RESPONSE = "```python\ndef f(x):\n    return x + 1\n```"
TESTS = ["assert f(1) == 2", "assert f(-1) == 0"]


def demonstration(response: str = RESPONSE, **fields: object) -> Demonstration:
    return Demonstration("row-1", (Turn("user", "Write f"),), response, fields or {"tests": TESTS})


def check(body: str, head: str = "") -> CheckResult:
    """Check a function f with this body that would be right without what the body does first."""
    lines = "\n".join(f"    {line}" for line in [*body.splitlines(), "return x + 1"])
    return TASK.check(f"{head}\ndef f(x):\n{lines}", demonstration())


@pytest.mark.parametrize("tests", [TESTS, TESTS[0], "\n".join(TESTS)])
def test_the_reference_answer_passes(tests: object) -> None:
    row = demonstration(tests=tests)
    TASK.check_demonstration(row)
    assert TASK.check(TASK.reference_answer(row), row).correct


def test_a_wrong_program_fails_with_its_code_as_answer() -> None:
    result = TASK.check("def f(x):\n    return x", demonstration())
    assert result == CheckResult(False, "tests_failed", "def f(x):\n    return x")


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "no_code"),
        ("I cannot do that.", "no_code"),
        ("```\n\n```", "no_code"),
        ("```python\ndef f(x) return x\n```", "syntax_error"),
        ("def g(x):\n    return x + 1", "error"),
        ("def f():\n    return 2", "error"),
        ("raise ValueError", "no_code"),
        ("import os\nraise ValueError", "error"),
        ("import sys\nsys.exit(0)", "error"),
        ("import os\nos._exit(0)", "exited"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "error"),
        ("def f(x):\n    return f(x)", "error"),
        ("def f(x):\n    return int(input())", "error"),
    ],
)
def test_a_program_that_does_not_work_is_wrong_with_a_reason(completion: str, reason: str) -> None:
    result = TASK.check(completion, demonstration())
    assert (result.correct, result.reason) == (False, reason)


def test_execution_is_off_unless_asked_for() -> None:
    task = load_task("python_code", {})
    with pytest.raises(TaskError, match=r"--task.options '\{allow_execution: true\}'"):
        task.check(RESPONSE, demonstration())
    with pytest.raises(TaskError, match="allow_execution"):
        task.check_demonstration(demonstration())


@pytest.mark.parametrize(
    "options",
    [
        {"allow_execution": "yes"},
        {"cpu_seconds": 0},
        {"cpu_seconds": 1.5},
        {"wall_seconds": 0},
        {"wall_seconds": "1"},
        {"memory_mb": 1},
        {"memory_mb": True},
    ],
)
def test_a_bad_option_is_named(options: dict[str, object]) -> None:
    with pytest.raises(TaskError, match=next(iter(options))):
        load_task("python_code", options)


@pytest.mark.parametrize("body", ["while True: pass", "import time\ntime.sleep(60)", "sum(iter(int, 1))"])
@pytest.mark.few(1)
def test_an_endless_program_is_stopped(body: str) -> None:
    start = time.monotonic()
    assert check(body).reason == "timeout"
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "body",
    ["[0] * 10**10", "parts = []\nwhile True: parts.append('x' * 10**7)"],
)
def test_a_memory_hog_is_stopped(body: str) -> None:
    task = load_task("python_code", {"allow_execution": True, "memory_mb": 128})
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    assert task.check(f"def f(x):\n{lines}", demonstration()).reason == "memory_limit"


@pytest.mark.parametrize(
    "body",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
        "import socket\nsocket.getaddrinfo('localhost', 80)",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
    ],
)
def test_the_network_is_off(body: str) -> None:
    assert check(body).reason == "error"


def test_the_network_is_refused_rather_than_unreachable() -> None:
    body = "import socket\ntry: socket.socket()\nexcept PermissionError: return x + 1\nreturn None"
    assert check(body).correct


@pytest.mark.parametrize(
    "body",
    [
        "import os\nwhile True: os.fork()",
        "import os\nos.system('true')",
        "import subprocess\nsubprocess.run(['true'])",
        "import threading\nthreading.Thread(target=print).start()",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)",
        "import ctypes\nctypes.CDLL(None)",
    ],
)
def test_new_processes_threads_and_signals_are_refused(body: str) -> None:
    assert check(body).reason == "error"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_huge_output_is_thrown_away(stream: str) -> None:
    assert check(f"import sys\nsys.{stream}.write('x' * 10**7)").correct


def test_a_huge_file_is_stopped() -> None:
    assert check("open('x', 'w').write('x' * 10**8)").reason == "error"


def test_files_outside_the_working_directory_are_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    tmp_path.chmod(0o777)
    kept.chmod(0o666)
    assert check(f"open({str(kept)!r}, 'w')").reason == "error"
    assert check(f"import os\nos.remove({str(kept)!r})").reason == "error"
    assert check("open('own', 'w').write('x')\nassert open('own').read() == 'x'").correct
    assert kept.read_text() == "kept"


def test_the_program_sees_an_empty_directory_and_none_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    body = "import os, sys\nassert not os.listdir('.')\nassert 'SECRET_TOKEN' not in os.environ"
    assert check(f"{body}\nassert not any('tests' in path for path in sys.path)").correct


def test_a_program_that_closes_the_report_is_wrong() -> None:
    assert check("import os\nos.closerange(0, 64)").reason in ("exited", "crashed")


def test_the_order_of_a_set_is_the_same_in_every_check() -> None:
    # Sets of strings are ordered by hash, which Python draws anew for each process unless told not to.
    command = [sys.executable, "-c", "print(hash('a'))"]
    fixed = int(subprocess.check_output(command, env={"PYTHONHASHSEED": "0"}))
    assert TASK.check(RESPONSE, demonstration(tests=f"assert hash('a') == {fixed}")).correct


def test_dataclasses_and_a_main_guard_work() -> None:
    head = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    a: int\nif __name__ == '__main__':\n    raise ValueError"
    )
    assert check("assert A(1) == A(1)", head).correct


@pytest.mark.parametrize(
    "fields",
    [
        {"other": 1},
        {"tests": ""},
        {"tests": []},
        {"tests": [1]},
        {"tests": 5},
        {"tests": "assert f("},
    ],
)
def test_missing_or_broken_tests_are_named(fields: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"row-1.*'tests'"):
        TASK.check_demonstration(demonstration(**fields))
    with pytest.raises(DataError, match="row-1"):
        TASK.check(RESPONSE, demonstration(**fields))


def test_a_response_without_a_program_is_refused() -> None:
    with pytest.raises(DataError, match="row-1"):
        TASK.check_demonstration(demonstration("No code."))


def test_a_check_process_that_cannot_start_is_an_error_not_a_wrong_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "child.py"
    broken.write_text("raise OSError('no limits here')")
    monkeypatch.setattr("onpolicy_sdft.tasks.code_server._CHILD", broken)
    task = load_task("python_code", {"allow_execution": True})  # no process of its own yet
    with pytest.raises(TaskError, match="no limits here"):
        task.check(RESPONSE, demonstration())


DEFINITION = "def f(x):\n    return x"


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        (DEFINITION, DEFINITION),
        (f"Sure:\n\n{DEFINITION}\n\nIt returns x.", f"{DEFINITION}\n"),
        (f"```python\n{DEFINITION}\n```", f"{DEFINITION}\n"),
        (f"```\n{DEFINITION}\n```\nUse:\n```\nf(1)\n```", f"{DEFINITION}\n"),
        (
            f"```py\n{DEFINITION}\n```\n```python\ndef g(): pass\n```",
            f"{DEFINITION}\n\ndef g(): pass\n",
        ),
        (f"```bash\nls\n```\n```python\n{DEFINITION}\n```", f"{DEFINITION}\n"),
        (f"```python\n{DEFINITION}", DEFINITION),
        ("```python\nf = abs\n```", "f = abs\n"),
        ("Nothing here.", None),
    ],
)
def test_the_program_is_found_in_the_completion(completion: str, code: str | None) -> None:
    assert next(iter(programs(completion)), None) == code


def test_what_a_row_sets_up_runs_before_the_program() -> None:
    row = demonstration(tests=TESTS, setup="STEP = 1\n\ndef step(x):\n    return x + STEP")
    TASK.check_demonstration(row)
    assert TASK.check("def f(x):\n    return step(x)", row).correct
    assert TASK.check("from __future__ import annotations\ndef f(x):\n    return step(x)", row).correct
    assert TASK.check("def step(x):\n    return 0\n\ndef f(x):\n    return step(x)", row).reason == "tests_failed"
    assert TASK.check("def f(x):\n    return step(x)", demonstration()).reason == "error"


@pytest.mark.parametrize("setup", ["def (", 3])
def test_a_setup_that_is_not_python_is_refused_by_name(setup: object) -> None:
    with pytest.raises(DataError, match="row-1.*'setup' is not Python"):
        TASK.check_demonstration(demonstration(tests=TESTS, setup=setup))


@pytest.mark.parametrize(("shown", "present"), [(0, []), (1, TESTS[:1]), (5, TESTS)])
def test_a_question_shows_as_many_tests_as_asked_for(shown: int, present: list[str]) -> None:
    task = load_task("python_code", {"allow_execution": True, "show_tests": shown})
    question = task.ask_row("Write it.", {"tests": TESTS})
    assert question.startswith("Write it.")
    assert question.endswith("Answer with one Python code block.")
    assert [test for test in TESTS if test in question] == present
    assert task.ask_row("Write it.", {}) == task.ask("Write it.")


@pytest.mark.parametrize("shown", [-1, 1.5, True])
def test_a_bad_number_of_shown_tests_is_named(shown: object) -> None:
    with pytest.raises(TaskError, match="show_tests"):
        load_task("python_code", {"show_tests": shown})


@pytest.mark.parametrize(
    ("completion", "tests", "message"),
    [
        ("I cannot.", "assert f(1) == 2", "The answer holds no Python program."),
        (
            "```python\ndef f(x) return x\n```",
            "assert f(1) == 2",
            "The program is not valid Python: line 1: def f(x) return x (expected ':')",
        ),
        ("def f(x):\n    return x", TESTS, "This test fails: assert f(1) == 2\nHere f(1) is 1"),
        (
            "def f(x):\n    return x",
            "a = f(3); assert a == 3; assert f(a) == 4, 'one more'",
            "This test fails: assert f(a) == 4, 'one more'\nHere f(a) is 3\nIt says: one more",
        ),
        (
            "def f(x):\n    return [x] * 1000",
            "def check(candidate):\n    assert candidate(1) == [1]\n    assert True\ncheck(f)",
            f"This test fails: assert candidate(1) == [1]\nHere candidate(1) is [{'1, ' * 20}...]",
        ),
        ("def f(x):\n    return x", "assert f(1) == 1\nassert not f(2)", "This test fails: assert not f(2)"),
        (
            "def f(x):\n    assert x > 1, 'too small'",
            "assert f(2) is None\nassert f(1) == 2",
            "This test fails: assert f(1) == 2\nIt says: too small",
        ),
        (
            "def f():\n    return 2",
            "assert f(1) == 2",
            "The program fails with TypeError: f() takes 0 positional arguments but 1 was given\n"
            "It fails in this test: assert f(1) == 2",
        ),
        ("import os\nraise ValueError('x')", TESTS, "The program fails with ValueError: x"),
        (
            "class E:\n    def __repr__(self): raise ValueError\ndef f(x): return E()",
            TESTS,
            "This test fails: assert f(1) == 2\nHere f(1) is <E instance>",
        ),
        ("def f(x):\n    while True: pass", TESTS, "The program did not come to an end within 1 seconds."),
        ("import os\nos._exit(0)", TESTS, "The program ends its process before the tests are through."),
    ],
)
def test_the_message_says_which_test_fails_and_how(completion: str, tests: object, message: str) -> None:
    assert TASK.check(completion, demonstration(tests=tests)).message == message


def test_a_test_means_the_same_whether_its_values_are_kept_or_not() -> None:
    tests = [
        "assert 0 < f(1) < 3",
        "assert f(1) == 2 and f(2) == 3",
        "class Held:\n    assert f(0) == 1",
        "def check(g):\n    for x in range(3):\n        assert g(x) == x + 1, x\ncheck(f)",
        "assert [y for y in range(2) if (z := f(y))] == [0, 1]",
        "assert (z := f(1)) == 2 and z == 2",
    ]
    assert TASK.check(RESPONSE, demonstration(tests=tests)).correct


def answers() -> list[tuple[str, str]]:
    """Texts with what is wrong with the program a person reads out of them."""
    with (Path(__file__).with_name("answers") / "python_code.jsonl").open() as lines:
        return [(row["text"], row["reason"]) for row in map(json.loads, lines)]


@pytest.mark.parametrize(("text", "reason"), answers())
def test_programs_are_read_in_the_forms_in_which_models_write_them(text: str, reason: str) -> None:
    result = TASK.check(text, demonstration())
    assert (result.correct, result.reason) == (not reason, reason)


def test_a_row_whose_response_is_a_form_of_program_is_taken() -> None:
    for text, reason in answers():
        if not reason:
            TASK.check_demonstration(demonstration(text))


def test_no_more_than_a_few_programs_are_run() -> None:
    blocks = "\n".join(f"```python\ndef f(x):\n    return x - {n}\n```" for n in range(50))
    assert len(programs(blocks)) == 4
