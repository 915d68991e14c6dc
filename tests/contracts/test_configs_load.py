from __future__ import annotations

from pathlib import Path

import pytest

from onpolicy_sdft.config.check import evaluation_sets
from onpolicy_sdft.config.load import dump_config, load_config
from onpolicy_sdft.data.templates import TeacherContext
from onpolicy_sdft.tasks import load_task

ROOT = Path(__file__).parents[2]
#: Rooms and files that are not options of one run; each has a test of its own.
PLANS = ("continual", "compare", "sweep", "tool_use_science.yaml")
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.y*ml") if not {path.parent.name, path.name} & set(PLANS))
NAMES = [str(path.relative_to(ROOT)) for path in CONFIGS]


def test_there_are_configs():
    assert "configs/online/quickstart.yaml" in NAMES


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
@pytest.mark.few(12)
def test_every_shipped_config_loads_and_names_a_template_and_tasks_that_exist(path, tmp_path):
    config = load_config(path)
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config
    TeacherContext(config.context.template, config.context.show)
    for task in (config.task, *(item.task for item in [*evaluation_sets(config), *config.eval.validation])):
        load_task(task.name, task.options)


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_every_shipped_config_says_what_it_is_for(path):
    assert path.read_text().startswith("# ")
