"""The environment that a data set comes from, where it is installed."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torchrl.data import Bounded

from rambo_trl.data.simulator import mujoco_messages_logged
from rambo_trl.data.spaces import ObservationLayout

if TYPE_CHECKING:
    from rambo_trl.data.offline_dataset import OfflineDataset

__all__ = ["action_bounds", "check_environment", "environment_spaces"]


def environment_spaces(env_id: str) -> tuple[spaces.Space, spaces.Space]:
    """Make an environment and return its observation and action space.

    Raises:
        ValueError: if it is not installed; the message says what to install.
    """
    try:
        with mujoco_messages_logged(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an older version than the newest is what was asked
            env = gymnasium.make(env_id, disable_env_checker=True)
            env.close()
    except (gymnasium.error.Error, ImportError) as error:
        lines = str(error).strip().splitlines()
        package = "gymnasium-robotics" if "Maze" in env_id else "the package that registers it"
        raise ValueError(
            f"environment {env_id} is not installed ({lines[0] if lines else error!r}): install "
            f"{package}, or give the env_id of one that is"
        ) from None
    return env.observation_space, env.action_space


def action_bounds(env_id: str | None, size: int) -> Bounded:
    """Return the environment's action bounds where it is installed and fits, else [-1, 1]."""
    low, high = -torch.ones(size), torch.ones(size)
    if env_id in gymnasium.registry:
        try:
            space = environment_spaces(env_id)[1]
        except ValueError:
            space = spaces.Space()  # registered, but what it needs is not installed
        if isinstance(space, spaces.Box) and np.prod(space.shape) == size:
            low, high = (torch.from_numpy(v.reshape(-1).copy()) for v in (space.low, space.high))
    return Bounded(low=low.float(), high=high.float(), shape=low.shape, dtype=torch.float32)


def check_environment(dataset: OfflineDataset) -> None:
    """Check that a data set's environment is installed and fits its data, before any long work.

    Raises:
        ValueError: if the data set names no environment, the environment is not installed, or
            observations or actions have other sizes there than in the data.
    """
    if dataset.env_id is None:
        raise ValueError(f"data set {dataset.name} names no environment to evaluate in")
    observation_space, action_space = environment_spaces(dataset.env_id)
    layout = dataset.observation_layout or ObservationLayout.of(
        observation_space, name=dataset.env_id, env_id=dataset.env_id
    )
    try:
        size = layout.flatten(observation_space.sample()).shape[-1]
    except ValueError as error:
        raise ValueError(
            f"data set {dataset.name} does not fit {dataset.env_id}: {error}; give another env_id"
        ) from None
    for kind, in_env, in_data in (
        ("observations", size, dataset.observation_size),
        ("actions", getattr(action_space, "shape", None), tuple(dataset.action_spec.shape)),
    ):
        if in_env != in_data:
            raise ValueError(
                f"data set {dataset.name} does not fit {dataset.env_id}: {kind} of size {in_data} "
                f"in the data and {in_env} in the environment; give the env_id they come from"
            )
