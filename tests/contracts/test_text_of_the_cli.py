from __future__ import annotations

import subprocess
import sys

import pytest

from onpolicy_sdft.cli.main import VERBS, main

#: Shows the help of every verb in one process, and what was imported by then.
HELPS = """
import sys, time
from onpolicy_sdft.cli.main import VERBS, main
for verb in VERBS:
    started = time.process_time()
    try:
        code = main([verb, "--help"])
    except SystemExit as stopped:
        code = stopped.code
    found = [name for name in ("torch", "transformers", "peft", "datasets") if name in sys.modules]
    print(verb, code, found, time.process_time() - started < 5, file=sys.stderr)
"""


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail with exit code 2 and one line on stderr."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err.strip()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_verb(capsys, arguments):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb:11} {text}\n" in shown for verb, text in VERBS.items())
    assert "sdft VERB --help" in shown


def test_an_unknown_verb_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("sdft: there is no verb 'trian'. Did you mean 'train'?\n")
    assert "usage: sdft VERB" in shown


def test_a_verb_of_one_process_refuses_to_be_launched_as_several(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 were launched" in refuse(capsys, "distill", "--help")


@pytest.mark.slow
def test_the_help_of_every_verb_is_quick_and_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", HELPS], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines() == [f"{verb} 0 [] True" for verb in VERBS]
    assert all(f"usage: sdft {verb}" in done.stdout for verb in VERBS)


@pytest.mark.parametrize("arguments", [["plan", "--help_all"], ["configs", "list"]])
def test_output_that_is_read_no_further_ends_quietly(arguments):
    program = subprocess.Popen(
        [sys.executable, "-m", "onpolicy_sdft", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    program.stdout.close()  # as head does
    assert program.stderr.read() == ""
    assert program.wait() == 141


def test_the_module_is_the_same_program_as_the_script():
    command = [sys.executable, "-m", "onpolicy_sdft", "trian"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Did you mean 'train'?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--optim.lr=fast"), "sdft train: optim.lr='fast' is not usable: expected float."),
        (("train", "--optim.lr=-1"), "sdft train: optim.lr=-1.0 is not usable: it must be above 0."),
        (("probe", "--templats=[a]"), "sdft probe: There is no option 'templats'. The nearest option is 'templates'. "
         "See sdft probe --help."),
        (("chat", "run", "--temperature=hot"), "sdft chat: temperature='hot' is not usable: expected float."),
        (("export", "run", "--outptu=x"), "sdft export: There is no option 'outptu'. The nearest option is 'output'. "
         "See sdft export RUN --help."),
    ],
)  # fmt: skip
@pytest.mark.few(3)
def test_an_error_of_the_user_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert refuse(capsys, *arguments) == message


@pytest.mark.parametrize("verb", ["eval", "chat", "export", "report"])
@pytest.mark.parametrize("rest", [(), ("--output=x",)])
def test_a_verb_that_needs_a_target_says_so(capsys, verb, rest):
    assert refuse(capsys, verb, *rest).startswith(f"sdft {verb}: Name a run directory or a model first")


def test_an_unknown_action_on_models_lists_those_there_are(capsys):
    assert "choose from 'list', 'fetch'" in refuse(capsys, "models", "ftech")


def test_a_directory_that_is_no_run_is_named(capsys, tmp_path):
    assert str(tmp_path / "none") in refuse(capsys, "report", str(tmp_path / "none"))


def test_a_model_cannot_be_scored_without_sets(capsys, model_dir):
    assert "There is no set to score on" in refuse(capsys, "eval", str(model_dir))


def test_the_embedded_models_are_listed_with_licence_and_state(capsys, tmp_path):
    assert main(["models", "list", f"--cache_dir={tmp_path}"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("embedded:smollm2-135m-instruct  apache-2.0")
    assert line.endswith("not fetched")
