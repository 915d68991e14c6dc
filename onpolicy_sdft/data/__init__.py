"""Demonstrations: where they come from, the prompt pairs, the order, the micro-batches."""
