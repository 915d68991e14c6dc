"""Config -> objects."""
