from __future__ import annotations

from pathlib import Path

import pytest
from harness import write_config


@pytest.fixture
def config(tmp_path: Path, model_dir: Path) -> Path:
    return write_config(tmp_path, model_dir)
