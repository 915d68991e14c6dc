#!/usr/bin/env bash
# Lint, types and tests, as CI runs them. Options go to pytest, twice:  bash launch/test.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
install_into_venv "[dev]"
say "lint"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
say "types"
"$VENV/bin/mypy"
# One thread a worker: two programs of two threads each on two cores take ten times as long. Tests of several ranks are
# processes enough by themselves.
say "tests"
OMP_NUM_THREADS=1 "$VENV/bin/python" -m pytest -n auto --ignore tests/distributed "$@" || [ $? -eq 5 ] # 5: none chosen
say "tests of several ranks"
"$VENV/bin/python" -m pytest tests/distributed "$@" || [ $? -eq 5 ]
