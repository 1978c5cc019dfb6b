"""Plans: run notebooks in order, skip unchanged ones, and write a report."""
