#!/usr/bin/env bash
# Train on the GPUs of this machine, one process each. The config is that of one process: its batch is over all ranks.
#     NUM_GPUS=4 bash launch/multi_gpu.sh --config configs/online/gsm8k.yaml --data.path train.jsonl
#     BACKEND=zero3 bash launch/multi_gpu.sh --config ...     # ddp (the default), zero1, zero2, zero3, zero3_offload, fsdp2
#     DRY_RUN=1 NUM_GPUS=4 GPU_MEMORY=24 bash launch/multi_gpu.sh --config ...     # the plan and the command, nothing else
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v accelerate >/dev/null || PATH="$PWD/.venv/bin:$PATH" # no environment is active: the checkout's own
NUM_GPUS="${NUM_GPUS:-$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)}"
if [ "$NUM_GPUS" -lt 1 ]; then
    echo "multi_gpu.sh: no GPU was found; NUM_GPUS=N says how many processes to start" >&2
    exit 2
fi
config="launch/accelerate/${BACKEND:-ddp}.yaml"
if [ ! -f "$config" ]; then
    echo "multi_gpu.sh: BACKEND=$BACKEND is none of $(cd launch/accelerate && echo *.yaml | sed 's/\.yaml//g')" >&2
    exit 2
fi
command=(accelerate launch --config_file "$config" --num_processes "$NUM_GPUS" -m onpolicy_sdft train "$@")
if [ -n "${DRY_RUN:-}" ]; then
    echo "${command[*]}"
    exec python -m onpolicy_sdft plan --gpus "$NUM_GPUS" --gpu_memory "${GPU_MEMORY:-80}" "$@"
fi
source launch/environment.sh
exec "${command[@]}"
