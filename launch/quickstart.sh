#!/usr/bin/env bash
# The main job on a small real model, from nothing: install, fetch the model, score it, train it, score it again.
# Under ten minutes on two CPU cores. Options after the script's name go to `sdft train`:
#     bash launch/quickstart.sh --train.max_steps 40
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
source launch/environment.sh
install_into_venv ""
say "fetching the embedded model"
"$VENV/bin/sdft" models fetch smollm2-135m-instruct
machine="$("$VENV/bin/sdft" doctor)"
if [[ "$machine" == *"no instructions for it: model.dtype bfloat16"* ]]; then
    say "this CPU has no instructions for bfloat16, in which the config computes: float32 is several times faster"
    set -- --model.dtype float32 --train.precision fp32 "$@"
fi
say "training (see configs/online/quickstart.yaml)"
exec "$VENV/bin/sdft" train --config configs/online/quickstart.yaml --train.output_dir "runs/quickstart-$(date +%Y%m%d-%H%M%S)" "$@"
