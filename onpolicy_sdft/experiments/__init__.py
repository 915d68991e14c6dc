"""Experiments of many runs: sweeps, sequences of tasks, comparisons of methods."""
