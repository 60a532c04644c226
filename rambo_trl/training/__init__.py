"""The phases of Algorithm 1, evaluation, checkpoints and what a run leaves behind."""
