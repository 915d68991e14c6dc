#!/usr/bin/env bash
# Builds the site of docs/ into build/site; with --serve shows it at http://127.0.0.1:8000.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
install_into_venv "[docs]"
if [ "${1:-}" = --serve ]; then
    exec "$VENV/bin/mkdocs" serve --config-file launch/mkdocs.yml
fi
exec "$VENV/bin/mkdocs" build --strict --config-file launch/mkdocs.yml
