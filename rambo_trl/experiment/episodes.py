"""Episodes of a policy in the real environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gymnasium.envs.registration import EnvSpec

from rambo_trl.data import make_environment, mujoco_messages_logged
from rambo_trl.data.playing import Flatten, flattening, play_start, play_step

__all__ = ["EvaluationResult", "rollout_episodes"]


@dataclass(frozen=True)
class EvaluationResult:
    """What some episodes gave.

    Attributes:
        returns: undiscounted returns [episodes].
        lengths: in steps [episodes].
        discounted_returns: with the discount factor that was asked for [episodes].
    """

    returns: np.ndarray
    lengths: np.ndarray
    discounted_returns: np.ndarray

    @property
    def return_mean(self) -> float:
        """Mean return over the episodes."""
        return float(self.returns.mean())

    @property
    def return_std(self) -> float:
        """Standard deviation of the return over the episodes."""
        return float(self.returns.std())


def rollout_episodes(
    act: Callable[[np.ndarray], np.ndarray],
    environment: str | EnvSpec,
    *,
    num_episodes: int,
    seed: int,
    flatten: Flatten | None = None,
    gamma: float = 1.0,
) -> EvaluationResult:
    """Play one episode in each of ``num_episodes`` copies of an environment at once.

    Args:
        act: maps observations [num_episodes, observation_size] to actions
            [num_episodes, action_size].
        environment: a registered Gymnasium id, or a specification.
        num_episodes: number of episodes, all started together.
        seed: seed of the first copy; the following copies take the following seeds.
        flatten: makes a vector of an observation, such as ``dataset.observation_layout.flatten``;
            by the environment's observation space where None.
        gamma: discount factor of the discounted returns.

    Returns:
        The episodes' returns and lengths. Copies that have ended wait for the others.

    Raises:
        ValueError: if the environment is not installed or does not follow Gymnasium's interface
            (:func:`~rambo_trl.data.check_environment` finds it before).
    """
    with mujoco_messages_logged():
        envs = [make_environment(environment) for _ in range(num_episodes)]
    try:
        flatten = flatten or flattening(envs[0])
        rows = [play_start(env, flatten, seed=seed + i) for i, env in enumerate(envs)]
        returns, discounted_returns = np.zeros(num_episodes), np.zeros(num_episodes)
        lengths = np.zeros(num_episodes, dtype=np.int64)
        running = np.ones(num_episodes, dtype=bool)
        while running.any():
            action = act(np.stack(rows))
            for i in np.flatnonzero(running):
                rows[i], reward, terminated, truncated = play_step(envs[i], action[i], flatten)
                returns[i] += reward
                discounted_returns[i] += gamma ** lengths[i] * reward
                lengths[i] += 1
                running[i] = not (terminated or truncated)
    finally:
        for env in envs:
            env.close()
    return EvaluationResult(returns, lengths, discounted_returns)
