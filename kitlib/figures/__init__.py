"""Figures that all families share; they take arrays and read no files."""
