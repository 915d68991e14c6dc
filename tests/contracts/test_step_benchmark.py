from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from onpolicy_sdft.config.load import load_config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "benchmarks" / "step").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
@pytest.mark.few(1)
def test_a_step_benchmark_names_methods_that_load_and_contenders_that_are_there(path):
    settings = yaml.safe_load(path.read_text())
    contenders = settings["contenders"]
    for asked in contenders.values():
        method = [f"configs/methods/{asked['method']}.yaml"] if asked["adapter"] == "own" else []
        overrides = {**settings["overrides"], **asked.get("overrides", {})}
        load_config(*(ROOT / name for name in [settings["run_config"], *method]), **overrides)
        assert (ROOT / "benchmarks" / "adapters" / f"step_{asked['adapter']}.py").exists()
    assert {name for group in settings["groups"] for name in group} == set(contenders)
    assert {name for pair in settings["ratios"] for name in pair} <= set(contenders)
