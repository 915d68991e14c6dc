"""The ``sdft`` command: one file a verb, no logic."""
