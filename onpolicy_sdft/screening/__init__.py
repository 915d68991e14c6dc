"""Keep a rollout, fall back to the demonstration, drop the example or draw again; each with its reason."""
