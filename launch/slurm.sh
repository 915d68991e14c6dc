#!/usr/bin/env bash
# Train under Slurm: one task a machine, which starts a process a GPU.
#     sbatch --nodes 2 --gpus-per-node 8 launch/slurm.sh --config ... --train.output_dir /shared/run
#     DRY_RUN=1 NUM_NODES=2 NUM_GPUS=8 bash launch/slurm.sh --config ...     # the plan and the command, nothing else
# Five minutes before the time is over Slurm sends SIGTERM to this script, which passes it on: the run saves a checkpoint
# after the step it is in, and the job is queued again and goes on from it. BACKEND as in multi_gpu.sh.
#SBATCH --job-name onpolicy_sdft
#SBATCH --ntasks-per-node 1
#SBATCH --signal B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
if [ -n "${DRY_RUN:-}" ]; then
    exec env NODE_RANK=0 HEAD=localhost NUM_NODES="${NUM_NODES:-1}" bash launch/multi_node.sh "$@"
fi
HEAD="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export HEAD NUM_NODES="$SLURM_NNODES" NUM_GPUS="${SLURM_GPUS_ON_NODE:?ask for --gpus-per-node}"
export PORT="${PORT:-$((20000 + SLURM_JOB_ID % 20000))}" # two jobs can have the same head
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec bash launch/multi_node.sh "$@"' \
    multi_node.sh --train.resume auto "$@" &
run=$!
out_of_time=""
trap 'out_of_time=yes; kill -TERM "$run" 2>/dev/null || true' TERM
code=0
wait "$run" || code=$?
if [ -n "$out_of_time" ]; then # the signal ended the first wait, not the run
    wait "$run" || code=$?
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
