"""What a model can do: scores with intervals, what it still does as before, and whether its teacher is good."""
