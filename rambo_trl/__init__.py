"""RAMBO-RL, robust adversarial model-based offline reinforcement learning, as TorchRL pieces."""

import gymnasium

from rambo_trl.runtime.places import ensure_home

ensure_home()  # before anything is imported that looks for one

from rambo_trl.experiment.guard import GuardedPolicy  # noqa: E402
from rambo_trl.experiment.policy import Policy, load_policy  # noqa: E402

gymnasium.register("rambo_trl/DMSD-v0", "rambo_trl.envs.dmsd:DMSDEnv", max_episode_steps=100)
gymnasium.register(
    "rambo_trl/Simglucose-v0", "rambo_trl.envs.simglucose:SimglucoseEnv", max_episode_steps=480
)

__version__ = "0.1.0"

__all__ = ["GuardedPolicy", "Policy", "__version__", "load_policy"]
