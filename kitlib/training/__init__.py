"""The training loop: fits that resume exactly, checkpoints, optimizers, losses."""
