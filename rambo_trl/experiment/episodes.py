"""Episodes of a policy in the real environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from gymnasium.envs.registration import EnvSpec

from rambo_trl.data import make_environment, mujoco_messages_logged
from rambo_trl.data.playing import Flatten, flattening, play_start, play_step

__all__ = ["EvaluationResult", "PlayedStep", "rollout_episodes"]


class PlayedStep(NamedTuple):
    """One step of one episode, in the environment's units."""

    episode: int
    number: int  # from 0
    observation: np.ndarray
    action: np.ndarray
    reward: float
    next_observation: np.ndarray
    terminated: bool


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
    max_steps: int | None = None,
    on_step: Callable[[PlayedStep], object] | None = None,
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
        max_steps: after which the episodes are left; by default they are played to their end.
        on_step: called with every step, in the order of time and of the copies.

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
        while running.any() and (max_steps is None or lengths.max() < max_steps):
            states = np.stack(rows)  # copies: an environment may write into its own
            action = act(states)
            for i in np.flatnonzero(running):
                rows[i], reward, terminated, truncated = play_step(envs[i], action[i], flatten)
                if on_step is not None:
                    on_step(
                        PlayedStep(
                            episode=int(i),
                            number=int(lengths[i]),
                            observation=states[i],
                            action=action[i],
                            reward=reward,
                            next_observation=rows[i].copy(),
                            terminated=terminated,
                        )
                    )
                returns[i] += reward
                discounted_returns[i] += gamma ** lengths[i] * reward
                lengths[i] += 1
                running[i] = not (terminated or truncated)
    finally:
        for env in envs:
            env.close()
    return EvaluationResult(returns, lengths, discounted_returns)
