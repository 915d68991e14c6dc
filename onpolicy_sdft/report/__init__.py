"""Tables, curves and self-contained pages from what runs, sequences, comparisons, sweeps and shifts leave. No torch."""
