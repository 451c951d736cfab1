"""Meet the trainer: checkpoints."""
