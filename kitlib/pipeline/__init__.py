"""Plans: notebooks executed in order, skipped when unchanged, and reported."""
