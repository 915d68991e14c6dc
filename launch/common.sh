# Sourced by the other scripts: makes an environment in the checkout and installs the package into it.
# Usage: install_into_venv EXTRAS      e.g. install_into_venv ""   or   install_into_venv "[dev]"
# VENV and CONSTRAINTS say where, and with which versions; a script may set both.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python3.11}"
VENV="$ROOT/.venv"
CONSTRAINTS="$ROOT/launch/constraints.txt"

say() { printf '\n== %s\n' "$*"; }

has_cuda() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; }

# A CPU machine must not pull gigabytes of CUDA. The pinned torch version alone gives a CPU build only where pip is
# configured with a wheel of that version; elsewhere, without a CUDA device, ask for PyTorch's own CPU index.
torch_index_arguments() {
    if has_cuda; then return; fi
    local links place index="https://download.pytorch.org/whl/cpu" pinned
    pinned="$(sed -n 's/^torch==//p' "$CONSTRAINTS")"
    links="$("$VENV/bin/python" -m pip config get global.find-links 2>/dev/null || true) ${PIP_FIND_LINKS:-}"
    for place in $links; do
        if compgen -G "${place#file://}/torch-$pinned[+-]*" >/dev/null; then return; fi
    done
    # pip would try an index that cannot be reached again and again, for every package.
    if "$VENV/bin/python" -c "import urllib.request; urllib.request.urlopen('$index/torch/', timeout=20)" 2>/dev/null; then
        echo "--extra-index-url $index"
    else
        echo "$index cannot be reached: torch $pinned comes from the package index, with CUDA (several GB)" >&2
    fi
}

install_into_venv() {
    local extras="$1" stamp="$VENV/.installed-${1:-core}"
    if [ ! -x "$VENV/bin/python" ]; then
        if ! command -v "$PYTHON" >/dev/null; then
            echo "$PYTHON is not there: install Python 3.11 or later, or name one with PYTHON=..." >&2
            exit 2
        fi
        say "making $VENV"
        "$PYTHON" -m venv "$VENV"
    fi
    if [ -f "$stamp" ] && [ "$stamp" -nt "$ROOT/pyproject.toml" ] && [ "$stamp" -nt "$CONSTRAINTS" ]; then
        return
    fi
    say "installing onpolicy_sdft$extras (one to three minutes)"
    # Python compiles what is imported; compiling all that is installed takes most of a minute.
    # shellcheck disable=SC2046  # two words are meant
    "$VENV/bin/python" -m pip install --no-compile --progress-bar off --constraint "$CONSTRAINTS" \
        $(torch_index_arguments) --editable "$ROOT$extras" |
        { grep -E '^ *(Downloading|Building|Installing|Successfully)' || true; } # pip's own failure still ends the script
    "$VENV/bin/python" -c 'import torch, transformers, onpolicy_sdft; print("torch", torch.__version__, "transformers", transformers.__version__)'
    touch "$stamp"
}
