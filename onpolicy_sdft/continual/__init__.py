"""Task sequences: the runner, and the metrics of what was learned and forgotten. No torch."""
