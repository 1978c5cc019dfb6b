"""Guesses and what becomes of them: runs, cross-validation, scores, baselines, ensembles, submissions."""
