"""The files that decide what a task of the user's own does."""

from __future__ import annotations

from pathlib import Path

from onpolicy_sdft.tasks.own_files import own_files


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_task_of_the_package_has_no_files_of_its_own():
    assert own_files("exact") == []
    assert own_files("no_such_module_anywhere:Mine") == []


def test_a_file_stands_with_what_it_imports_from_beside_it(tmp_path):
    mine = write(
        tmp_path / "mine.py", "import json\nimport helper\nfrom parts import rules\nfrom parts.words import WORDS\n"
    )
    helper = write(tmp_path / "helper.py", "import mine\n")  # a circle is no trouble
    package, rules = (
        write(tmp_path / "parts/__init__.py", ""),
        write(tmp_path / "parts/rules.py", "from .words import WORDS"),
    )
    words = write(tmp_path / "parts/words.py", "not python at all (")
    write(tmp_path / "other.py", "")
    assert own_files(f"{mine}:Mine") == sorted([mine, helper, package, rules, words])


def test_a_module_stands_with_what_it_imports_of_its_own_package(tmp_path, monkeypatch):
    package = write(tmp_path / "own_checks_of_a_package/__init__.py", "")
    task = write(
        tmp_path / "own_checks_of_a_package/task.py",
        "from . import rules\nfrom own_checks_of_a_package.words import WORDS\n",
    )
    rules, words = (
        write(tmp_path / "own_checks_of_a_package/rules.py", ""),
        write(tmp_path / "own_checks_of_a_package/words.py", ""),
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert own_files("own_checks_of_a_package.task:Mine") == sorted([package, task, rules, words])
