"""Kernels of a rollout on a GPU, written in Triton, and the decode step as one CUDA graph."""
