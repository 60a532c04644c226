"""Rollouts in the model, and episodes in the real environment."""

from rambo_trl.collectors.model_rollout import ModelRolloutCollector
from rambo_trl.collectors.real_episodes import EpisodeCollector
from rambo_trl.collectors.reverse_rollout import ReverseRolloutCollector, reverse_transitions

__all__ = [
    "EpisodeCollector",
    "ModelRolloutCollector",
    "ReverseRolloutCollector",
    "reverse_transitions",
]
