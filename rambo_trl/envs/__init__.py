"""The world model as an environment, and when its episodes end."""

from rambo_trl.envs import termination
from rambo_trl.envs.ensemble_model_env import EnsembleModelEnv
from rambo_trl.envs.learned_termination import LearnedTermination, fit_termination
from rambo_trl.envs.single_transition import SingleTransitionEnv
from rambo_trl.envs.uncertainty import (
    MOPOPenalty,
    MORELHalting,
    PessimismTransform,
    PessimisticModelEnv,
)

__all__ = [
    "EnsembleModelEnv",
    "LearnedTermination",
    "MOPOPenalty",
    "MORELHalting",
    "PessimismTransform",
    "PessimisticModelEnv",
    "SingleTransitionEnv",
    "fit_termination",
    "termination",
]
