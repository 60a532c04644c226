"""What surrounds a training: run folder, checkpoints, policies, evaluation, signals, results."""
