"""Other machines and what this one offers."""
