"""Training of every model by one path: optimizers, schedules, checkpoints, progress."""
