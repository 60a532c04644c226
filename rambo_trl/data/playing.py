"""Steps of a Gymnasium environment in plain vectors and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from rambo_trl.data.spaces import ObservationLayout

__all__ = ["Flatten", "flattening", "play_start", "play_step"]

#: makes a vector of an observation
Flatten = Callable[[Any], np.ndarray]


def flattening(env: gymnasium.Env) -> Flatten:
    """How an environment's observations become vectors where no data set says it.

    Raises:
        ValueError: if they are images or no real numbers.
    """
    env_id = None if env.spec is None else env.spec.id
    name = env_id or type(env.unwrapped).__name__
    return ObservationLayout.of(env.observation_space, name=name, env_id=env_id).flatten


def play_start(env: gymnasium.Env, flatten: Flatten, *, seed: int) -> np.ndarray:
    """Reset an environment.

    Returns:
        The observation [size], in float32 or float64.

    Raises:
        ValueError: if it does not follow Gymnasium's interface or its own observation space.
    """
    found: Any = env.reset(seed=seed)
    if not isinstance(found, tuple) or len(found) != 2:
        raise ValueError("reset() must return (observation, info)")
    return _as_vector(flatten(found[0]))


def play_step(
    env: gymnasium.Env, action: np.ndarray, flatten: Flatten
) -> tuple[np.ndarray, float, bool, bool]:
    """Take a step.

    Args:
        env: the environment.
        action: [action_size] of any type of real numbers.
        flatten: makes a vector of an observation.

    Returns:
        The observation [size] in float32 or float64, the reward, terminated and truncated.

    Raises:
        ValueError: as :func:`play_start`.
    """
    found: Any = env.step(_as_action(action, env.action_space))
    if not isinstance(found, tuple) or len(found) != 5:
        raise ValueError("step() must return (observation, reward, terminated, truncated, info)")
    reward = np.asarray(found[1], dtype=np.float64)
    if reward.size != 1:
        raise ValueError(f"a reward must be one number, got the shape {reward.shape}")
    return _as_vector(flatten(found[0])), reward.item(), bool(found[2]), bool(found[3])


def _as_vector(observation: Any) -> np.ndarray:
    """A row in floating point: where one holds whole numbers, the next may hold others."""
    row = np.asarray(observation).reshape(-1)
    return row.astype(np.result_type(row.dtype, np.float32), copy=False)


def _as_action(action: np.ndarray, space: gymnasium.Space) -> np.ndarray:
    """An action of the space's shape and type."""
    if not isinstance(space, gymnasium.spaces.Box):
        return action.reshape(space.shape or action.shape)
    shaped = action.reshape(space.shape).astype(space.dtype)
    if (shaped >= space.low).all() and (shaped <= space.high).all():
        return shaped
    # a bound that was rounded to float32 may lie just outside; what lies further is the policy's
    inside = shaped.clip(space.low, space.high)
    return np.where(np.isclose(shaped, inside), inside, shaped)
