"""Ablations: the points of a grid, their runs as commands, and one table of what came out. No torch."""
