"""A training run on disk: its files, checkpoints, metrics and parent."""
