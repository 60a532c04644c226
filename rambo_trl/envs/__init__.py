"""The world model as an environment, and when its episodes end."""

from rambo_trl.envs import termination
from rambo_trl.envs.ensemble_model_env import EnsembleModelEnv
from rambo_trl.envs.single_transition import SingleTransitionEnv

__all__ = ["EnsembleModelEnv", "SingleTransitionEnv", "termination"]
