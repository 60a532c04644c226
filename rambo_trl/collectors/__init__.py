"""Model-based rollout collection."""

from rambo_trl.collectors.model_rollout import ModelRolloutCollector
from rambo_trl.collectors.reverse_rollout import ReverseRolloutCollector, reverse_transitions

__all__ = ["ModelRolloutCollector", "ReverseRolloutCollector", "reverse_transitions"]
