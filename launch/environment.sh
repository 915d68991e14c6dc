# Sourced by the scripts that start processes on GPUs. What is set already stays.

# Writing and learning ask in turn for blocks of very different sizes: segments that grow leave no holes between them.
if [ -z "${PYTORCH_ALLOC_CONF:-}${PYTORCH_CUDA_ALLOC_CONF:-}" ]; then # the second is the older name of the first
    export PYTORCH_ALLOC_CONF=expandable_segments:True
fi
# After SIGTERM ranks finish the step they are in and save; torch's launcher would kill them after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-280}"
