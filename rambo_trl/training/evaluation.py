"""Evaluation in the real environment with the policy's mode (paper sec. 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rambo_trl.data import make_environment, mujoco_messages_logged

__all__ = ["EvaluationResult", "rollout_episodes", "evaluate_policy"]


@dataclass(frozen=True)
class EvaluationResult:
    """Undiscounted returns [episodes] and lengths in steps [episodes]."""

    returns: np.ndarray
    lengths: np.ndarray

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
    flatten: Callable[[Any], np.ndarray] = np.asarray,
) -> EvaluationResult:
    """Play one episode in each of ``num_episodes`` copies of an environment at once.

    Args:
        act: maps observations [num_episodes, observation_size] to actions
            [num_episodes, action_size].
        environment: a registered Gymnasium id, or a specification.
        num_episodes: number of episodes, all started together.
        seed: seed of the first copy; the following copies take the following seeds.
        flatten: makes a vector of an observation, such as ``dataset.observation_layout.flatten``.

    Returns:
        The episodes' returns and lengths. Copies that have ended wait for the others.
    """
    with mujoco_messages_logged():
        envs = [make_environment(environment) for _ in range(num_episodes)]
    try:
        observation = np.stack([flatten(env.reset(seed=seed + i)[0]) for i, env in enumerate(envs)])
        returns = np.zeros(num_episodes)
        lengths = np.zeros(num_episodes, dtype=np.int64)
        running = np.ones(num_episodes, dtype=bool)
        while running.any():
            action = act(observation)
            for i in np.flatnonzero(running):
                following, reward, terminated, truncated, _ = envs[i].step(action[i])
                observation[i] = flatten(following)
                returns[i] += float(reward)
                lengths[i] += 1
                running[i] = not (terminated or truncated)
    finally:
        for env in envs:
            env.close()
    return EvaluationResult(returns, lengths)


def evaluate_policy(
    policy: TensorDictModuleBase,
    environment: str | EnvSpec,
    *,
    num_episodes: int = 10,
    seed: int = 0,
    observation_mean: torch.Tensor | None = None,
    observation_std: torch.Tensor | None = None,
    flatten: Callable[[Any], np.ndarray] = np.asarray,
    device: torch.device | str = "cpu",
) -> EvaluationResult:
    """Evaluate a policy's mode in the real environment (10 episodes in the paper, sec. 6).

    Args:
        policy: reads ``"observation"`` and writes ``"action"``.
        environment: a registered Gymnasium id, or a specification.
        num_episodes: number of episodes.
        seed: seed of the first episode.
        observation_mean: the data's mean per dimension; with ``observation_std`` the
            observations are normalised as in training.
        observation_std: the data's standard deviation per dimension.
        flatten: makes a vector of an observation, as for :func:`rollout_episodes`.
        device: where the policy lives.

    Returns:
        The episodes' returns and lengths.
    """
    mean = None if observation_mean is None else observation_mean.to(device)
    std = None if observation_std is None else observation_std.to(device)

    def act(observation: np.ndarray) -> np.ndarray:
        x = torch.as_tensor(observation, dtype=torch.float32, device=device)
        if mean is not None and std is not None:
            x = (x - mean) / std
        td = policy(TensorDict({"observation": x}, batch_size=[x.shape[0]]))
        return td.get("action").cpu().numpy()

    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        return rollout_episodes(
            act, environment, num_episodes=num_episodes, seed=seed, flatten=flatten
        )
