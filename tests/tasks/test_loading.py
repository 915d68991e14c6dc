from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from onpolicy_sdft.errors import TaskError
from onpolicy_sdft.tasks import TASKS, load_task, work_of
from onpolicy_sdft.tasks.mixed import MixedTask
from onpolicy_sdft.types import Demonstration, Turn

ROW = Demonstration("row-1", (Turn("user", "q"),), "yes")
OWN = """
from dataclasses import dataclass
from onpolicy_sdft.tasks import Task
from onpolicy_sdft.types import CheckResult

@dataclass(frozen=True)
class Mine(Task):
    word: 'str' = "yes"
    name = "mine"
    def ask(self, prompt): return prompt
    def check(self, completion, demonstration): return CheckResult(completion == self.word)
    def reference_answer(self, demonstration): return self.word

class Plain:
    name = "plain"
    def ask(self, prompt): return prompt
    def check(self, completion, demonstration): return CheckResult(True)
    def reference_answer(self, demonstration): return ""
    def check_demonstration(self, demonstration): pass

class NoCheck:
    name = "no_check"
    def ask(self, prompt): return prompt

class HalfWritten(Task):
    name = "half"
    def ask(self, prompt): return prompt

class NoName(Plain):
    name = None

class ShortCheck(Plain):
    def check(self, completion): return CheckResult(True)

class Picky(Plain):
    def __init__(self, level): self.level = 1 / level
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "my_checks.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("name", TASKS)
def test_every_task_of_the_package_loads_under_its_own_name(name: str) -> None:
    assert load_task(name, {}).name == name


def test_an_unknown_task_names_the_nearest_and_the_way_out() -> None:
    with pytest.raises(TaskError, match=r"'function_cal'.*nearest: 'function_call'.*file.py:NAME"):
        load_task("function_cal", {})


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(TaskError, match=r"no option 'alow_execution'.*'allow_execution'"):
        load_task("python_code", {"alow_execution": True})
    with pytest.raises(TaskError, match="options: it has none"):
        load_task("free_form", {"x": 1})


def test_an_own_task_is_loaded_from_a_file(own: Path) -> None:
    task = load_task(f"{own}:Mine", {"word": "no"})
    task.check_demonstration(ROW)
    assert task.check("no", ROW).correct
    assert not task.check("yes", ROW).correct
    assert load_task(f"{own}:Plain", {}).name == "plain"


def test_an_own_task_is_loaded_from_a_relative_path(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    assert load_task("my_checks.py:Mine", {}).name == "mine"


def test_an_own_task_is_loaded_from_a_module(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(own.parent))
    assert load_task("my_checks:Mine", {}).name == "mine"
    monkeypatch.delitem(sys.modules, "my_checks")


def test_two_files_of_one_name_do_not_mix(own: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "my_checks.py"
    other.parent.mkdir()
    other.write_text(OWN.replace('"mine"', '"other"'))
    first, second = load_task(f"{own}:Mine", {}), load_task(f"{other}:Mine", {})
    assert (first.name, second.name) == ("mine", "other")


@pytest.mark.parametrize(
    ("class_name", "options", "message"),
    [
        ("Mein", {}, "no class or function 'Mein'.*nearest: 'Mine'"),
        ("OWN", {}, "no class or function 'OWN'.*it has Mine"),
        ("NoCheck", {}, "no method 'check'"),
        ("HalfWritten", {}, "does not write check, reference_answer"),
        ("NoName", {}, "'name'"),
        ("ShortCheck", {}, "ShortCheck.check must take 2"),
        ("Mine", {"wrod": 1}, "no option 'wrod'.*nearest: 'word'"),
        ("Picky", {}, "missing a required|level"),
        ("Picky", {"level": 0}, "ZeroDivisionError"),
    ],
)
def test_a_class_that_is_not_a_task_is_refused_at_load(
    own: Path, class_name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(f"{own}:{class_name}", options)


def test_a_missing_file_names_the_nearest(own: Path) -> None:
    with pytest.raises(TaskError, match=r"does not exist.*nearest: 'my_checks.py'"):
        load_task(f"{own.parent / 'my_check.py'}:Mine", {})


@pytest.mark.parametrize("text", ["def (", "import no_such_module_anywhere", "1 / 0"])
def test_a_file_that_cannot_be_imported_says_why_and_leaves_no_module(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    before = set(sys.modules)
    with pytest.raises(TaskError, match=r"broken.py.*(Syntax|ModuleNotFound|ZeroDivision)Error"):
        load_task(f"{path}:Mine", {})
    assert not {name for name in set(sys.modules) - before if name.startswith("broken")}


def test_a_module_that_cannot_be_imported_names_the_way_out() -> None:
    with pytest.raises(TaskError, match=r"no_such_module_anywhere.*\./my_checks.py:MyTask"):
        load_task("no_such_module_anywhere:Mine", {})


def test_tasks_do_not_import_torch() -> None:
    code = "import sys, onpolicy_sdft.tasks; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_task_of_ones_own_need_not_say_what_the_work_is(own: Path) -> None:
    assert work_of(load_task(f"{own}:Plain", {}))(ROW) == ""
    assert work_of(load_task(f"{own}:Mine", {}))(ROW) == ""


def test_a_mixture_says_of_each_row_what_its_own_task_calls_the_work() -> None:
    math, code = load_task("math_word_problem", {}), load_task("python_code", {})
    mixed = MixedTask(math, {"other": code})
    assert mixed.work(ROW) == math.work_wording
    assert mixed.work(replace(ROW, example_id="other")) == code.work_wording
