#!/usr/bin/env bash
# Lint, types and tests, as CI runs them. Options go to pytest:  bash launch/test.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
install_into_venv "[dev]"
say "lint"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
say "types"
"$VENV/bin/mypy"
say "tests"
"$VENV/bin/python" -m pytest "$@"
