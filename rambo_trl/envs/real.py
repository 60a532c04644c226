"""A data set's own environment as a TorchRL environment in the data's units."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torchrl.envs import (
    ActionScaling,
    Compose,
    DoubleToFloat,
    GymWrapper,
    ObservationNorm,
    RewardScaling,
    TransformedEnv,
)

from rambo_trl.data import TransitionData, make_environment, mujoco_messages_logged
from rambo_trl.data.playing import flattening, play_start, play_step

__all__ = ["SeededEpisodes", "make_real_env"]


class SeededEpisodes(gymnasium.Wrapper):
    """An environment in plain vectors, whose episodes have consecutive seeds.

    So that an episode can be played again, whatever came before it.

    Args:
        env: the environment.
        data: bounds of the actions, and how observations become vectors.
        first_seed: of the episode that is begun next.

    Attributes:
        next_seed: of the episode that is begun next.
    """

    def __init__(self, env: gymnasium.Env, data: TransitionData, first_seed: int) -> None:
        super().__init__(env)
        layout = data.observation_layout
        self._flatten = flattening(env) if layout is None else layout.flatten
        self.next_seed = first_seed
        # float64 where the data need it
        dtype = np.dtype(str(data.observation_mean.dtype).removeprefix("torch."))
        self.observation_space = Box(-np.inf, np.inf, (data.observation_size,), dtype.type)
        low, high = data.action_low.numpy(), data.action_high.numpy()
        self.action_space = Box(low, high, low.shape, low.dtype.type)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the next episode; a seed given here is that of the first of further ones."""
        seed = self.next_seed if seed is None else seed
        self.next_seed = seed + 1
        return self._vector(play_start(self.env, self._flatten, seed=seed)), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take a step with an action in the environment's units."""
        observation, reward, terminated, truncated = play_step(self.env, action, self._flatten)
        # as in the data: a terminal state is one, whether or not time was up as well
        return self._vector(observation), reward, terminated, truncated and not terminated, {}

    def _vector(self, observation: np.ndarray) -> np.ndarray:
        return observation.astype(self.observation_space.dtype)


def make_real_env(data: TransitionData, *, seed: int = 0) -> TransformedEnv:
    """The environment that the data come from, as a TorchRL environment.

    Observations are normalised, actions lie in [-1, 1] and rewards are scaled as in
    ``data.transitions``, so that its steps are further rows of them. Behind the transforms it is a
    :class:`SeededEpisodes`.

    Args:
        data: names the environment.

    Keyword Args:
        seed: of the first episode; the following ones have the following seeds.

    Raises:
        ValueError: if the data name no environment, it is not installed, or its observations or
            actions have other sizes than the data's
            (:func:`~rambo_trl.data.check_environment` tells all of that, and how to mend it).
    """
    if data.environment is None:
        raise ValueError(f"data set {data.name} names no environment to act in")
    with mujoco_messages_logged():
        base = GymWrapper(SeededEpisodes(make_environment(data.environment), data, seed))
    low, high = data.action_low, data.action_high
    return TransformedEnv(
        base,
        Compose(
            ObservationNorm(
                loc=data.observation_mean,
                scale=data.observation_std,
                in_keys=["observation"],
                standard_normal=True,
            ),
            RewardScaling(
                loc=torch.tensor(-data.reward_shift),
                scale=torch.tensor(data.reward_scale),
                standard_normal=True,
            ),
            DoubleToFloat(),
            ActionScaling(loc=(low + high) / 2, scale=(high - low) / 2),
        ),
    )
