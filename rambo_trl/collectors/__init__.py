"""Model-based rollout collection."""

from rambo_trl.collectors.model_rollout import ModelRolloutCollector

__all__ = ["ModelRolloutCollector"]
