"""The phases of Algorithm 1, pretraining, and the updates of the model-free methods."""

from rambo_trl.training.offline import OfflinePhase, UpdateStep, cosine_decay
from rambo_trl.training.phases import AgentPhase, ModelPhase
from rambo_trl.training.pretraining import (
    EarlyStopping,
    ModelFit,
    clip_actions,
    clone_behaviour,
    fit_world_model,
)

__all__ = [
    "AgentPhase",
    "EarlyStopping",
    "ModelFit",
    "ModelPhase",
    "OfflinePhase",
    "UpdateStep",
    "clip_actions",
    "clone_behaviour",
    "cosine_decay",
    "fit_world_model",
]
