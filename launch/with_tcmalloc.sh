#!/usr/bin/env bash
# Run a command under tcmalloc where the system has it (Debian: libtcmalloc-minimal4), as it is where not.
# Rollouts on a CPU gain a tenth: torch frees and asks for large blocks all the time.
#     bash launch/with_tcmalloc.sh sdft train --config ...
set -euo pipefail
for folder in "${TCMALLOC_FOLDER:-}" /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu /usr/lib64 /usr/lib /usr/local/lib; do
    library="$folder/libtcmalloc_minimal.so.4"
    if [ -n "$folder" ] && [ -f "$library" ]; then
        LD_PRELOAD="$library${LD_PRELOAD:+:$LD_PRELOAD}" exec "$@"
    fi
done
echo "with_tcmalloc.sh: libtcmalloc_minimal.so.4 was not found (TCMALLOC_FOLDER names a folder); running without" >&2
exec "$@"
