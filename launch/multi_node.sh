#!/usr/bin/env bash
# Train on several machines: start the same command on each, with its own NODE_RANK. The run directory must be on a disk
# that all of them see.
#     NUM_NODES=2 NODE_RANK=0 HEAD=10.0.0.1 NUM_GPUS=8 bash launch/multi_node.sh --config ... --train.output_dir /shared/run
#     NUM_NODES=2 NODE_RANK=1 HEAD=10.0.0.1 NUM_GPUS=8 bash launch/multi_node.sh --config ... --train.output_dir /shared/run
#     DRY_RUN=1 ...     # the plan and the command, nothing else
# HEAD is the address of the machine with NODE_RANK=0; PORT (29500) must be free there. BACKEND as in multi_gpu.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v accelerate >/dev/null || PATH="$PWD/.venv/bin:$PATH" # no environment is active: the checkout's own
for name in NUM_NODES NODE_RANK HEAD; do
    if [ -z "${!name:-}" ]; then
        echo "multi_node.sh: $name is unset; see the head of this file" >&2
        exit 2
    fi
done
NUM_GPUS="${NUM_GPUS:-$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)}" # of each machine
config="launch/accelerate/${BACKEND:-ddp}.yaml"
if [ "$NUM_GPUS" -lt 1 ] || [ ! -f "$config" ]; then
    echo "multi_node.sh: NUM_GPUS=$NUM_GPUS, $config: at least one GPU and a file that is there are needed" >&2
    exit 2
fi
total=$((NUM_NODES * NUM_GPUS))
command=(accelerate launch --config_file "$config" --num_machines "$NUM_NODES" --num_processes "$total"
    --machine_rank "$NODE_RANK" --main_process_ip "$HEAD" --main_process_port "${PORT:-29500}"
    --rdzv_backend static --same_network -m onpolicy_sdft train "$@")
if [ -n "${DRY_RUN:-}" ]; then
    echo "${command[*]}"
    exec python -m onpolicy_sdft plan --gpus "$total" --gpu_memory "${GPU_MEMORY:-80}" "$@"
fi
source launch/environment.sh
exec "${command[@]}"
