"""Kernels of the rollout engine for GPUs, in Triton: imported only where they run."""
