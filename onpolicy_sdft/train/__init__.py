"""The step, the loop around it, and what makes both resumable."""
