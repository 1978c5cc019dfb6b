"""Training on Tinker's machines instead of with TRL."""
