"""Demonstrations: where they come from, the two prompt views, the order, the micro-batches."""
