"""A page that shows rollouts, live or as a replay."""
