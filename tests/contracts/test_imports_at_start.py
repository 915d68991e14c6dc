"""What is slow to import is imported where it is used: commands and first steps do not wait for the rest."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from onpolicy_sdft.cli.main import VERBS

SLOW = {
    "accelerate", "bitsandbytes", "datasets", "deepspeed", "gguf", "lm_eval", "matplotlib", "numba", "openai", "pandas",
    "peft", "reasoning_gym", "scipy.stats", "sentence_transformers", "torch", "transformers",
    "vllm",
}  # fmt: skip
LEARNING = {"accelerate", "peft", "torch", "transformers"}


def slow_modules_after(code: str) -> set[str]:
    """Run a program in a process of its own; return which slow modules it imported."""
    shown = f"{code}\nimport sys\nsys.stderr.write(repr(sorted({SLOW!r} & set(sys.modules))))"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True, env=environment)
    return set(eval(done.stderr.splitlines()[-1]))


def test_importing_the_package_imports_nothing_slow():
    assert slow_modules_after("import onpolicy_sdft") == set()


def test_no_help_text_waits_for_anything_slow():
    code = (
        "import contextlib\nfrom onpolicy_sdft.cli.main import main\nmain(['--help'])\n"
        f"for verb in {list(VERBS)!r}:\n"
        "    with contextlib.suppress(SystemExit):\n        main([verb, '--help'])\n"
    )
    assert slow_modules_after(code) == set()


@pytest.mark.slow
def test_what_writes_and_learns_imports_what_it_needs_and_no_kernels_before_they_run():
    modules = "rollout.engine", "rollout.hf", "rollout.vllm", "rollout.weights", "fitting.fit", "build.loaded"
    code = "\n".join(f"import onpolicy_sdft.{module}" for module in modules)
    assert slow_modules_after(code) <= LEARNING  # of all at once: what any of them imports is in it


def test_reports_are_made_without_torch():
    assert slow_modules_after("import onpolicy_sdft.report.write") == {"matplotlib"}
    assert slow_modules_after("import onpolicy_sdft.report.tables") == set()
