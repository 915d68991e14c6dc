from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def config(tmp_path: Path, model_dir: Path) -> Path:
    from harness import write_config  # torch, which the process that hands out tests need not wait for

    return write_config(tmp_path, model_dir)
