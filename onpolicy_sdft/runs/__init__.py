"""The run directory: where every file of a run stands, and how it is written. No torch."""
