"""What is set for CUDA's libraries before they start, and what is said where that comes too late."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from onpolicy_sdft.build.cuda import make_repeatable

NAME = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    monkeypatch.setenv(NAME, "")  # so that what is set here is taken back
    del os.environ[NAME]


def test_cublas_is_asked_for_one_order_of_sums_before_cuda_starts(logged):
    make_repeatable("train.deterministic")
    assert os.environ[NAME] == ":4096:8"
    make_repeatable("train.deterministic")
    assert not logged


@pytest.mark.parametrize(("own", "said"), [(":16:8", ""), (":0:0", "CUBLAS_WORKSPACE_CONFIG=:0:0 is set")])
def test_what_the_user_set_stays_and_is_named_where_it_does_not_do(monkeypatch, logged, own, said):
    monkeypatch.setenv(NAME, own)
    make_repeatable("train.deterministic")
    assert os.environ[NAME] == own
    assert said in "".join(logged)
    assert bool(logged) == bool(said)


def test_where_cuda_runs_already_it_is_said_and_not_set(monkeypatch, logged):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    make_repeatable("train.deterministic")
    assert NAME not in os.environ
    assert "CUDA was in use before" in logged[0]


@pytest.mark.parametrize(("asked", "expected"), [("true", ":4096:8"), ("false", "None")])
def test_training_sets_it_before_torch_is_imported_where_it_is_asked_for(asked, expected):
    code = (
        "import os, sys\n"
        "class Stop(Exception): pass\n"
        "class AtTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        f"            print(os.environ.get({NAME!r}))\n"
        "            raise Stop\n"
        "sys.meta_path.insert(0, AtTorch())\n"
        "from onpolicy_sdft.cli.main import main\n"
        "try:\n"
        "    main(['train', '--data.path', 'x.jsonl', '--train.deterministic', sys.argv[1]])\n"
        "except Stop:\n"
        "    pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]
