"""World models as environments, termination rules, and the data's own environment."""

from rambo_trl.envs import termination
from rambo_trl.envs.ensemble_model_env import EnsembleModelEnv
from rambo_trl.envs.learned_termination import LearnedTermination, fit_termination
from rambo_trl.envs.real import SeededEpisodes, make_real_env
from rambo_trl.envs.single_transition import SingleTransitionEnv
from rambo_trl.envs.uncertainty import MOPOPenalty, MORELHalting, PessimisticModelEnv

__all__ = [
    "EnsembleModelEnv",
    "LearnedTermination",
    "MOPOPenalty",
    "MORELHalting",
    "PessimisticModelEnv",
    "SeededEpisodes",
    "SingleTransitionEnv",
    "fit_termination",
    "make_real_env",
    "termination",
]
