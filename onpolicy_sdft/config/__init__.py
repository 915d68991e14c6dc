"""Every option once, typed and documented."""
