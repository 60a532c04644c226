"""Playing a Gymnasium environment in plain vectors, and whether it fits a data set."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torchrl._utils import logger as torchrl_logger

from rambo_trl.data.environment import (
    bounds_of,
    environment_id,
    environment_spaces,
    make_environment,
)
from rambo_trl.data.offline_dataset import OfflineDataset
from rambo_trl.data.spaces import ObservationLayout

__all__ = [
    "Flatten",
    "bounds_that_differ",
    "check_environment",
    "flattening",
    "play_start",
    "play_step",
    "try_environment",
]

_TRIAL_SEED = 0
#: without a time limit an environment must end its own episodes within so many steps
_MOST_STEPS = 10_000


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
    """Reset an environment and return the observation [size], in float32 or float64.

    Raises:
        ValueError: if it does not follow Gymnasium's interface or its own observation space.
    """
    result: Any = env.reset(seed=seed)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError("reset() must return (observation, info)")
    return _as_vector(flatten(result[0]))


def play_step(
    env: gymnasium.Env, action: np.ndarray, flatten: Flatten
) -> tuple[np.ndarray, float, bool, bool]:
    """Take a step with an action [action_size] of any type of real numbers.

    Returns:
        The observation [size] in float32 or float64, the reward, terminated and truncated.

    Raises:
        ValueError: as :func:`play_start`.
    """
    result: Any = env.step(_as_action(action, env.action_space))
    if not isinstance(result, tuple) or len(result) != 5:
        raise ValueError("step() must return (observation, reward, terminated, truncated, info)")
    reward = np.asarray(result[1], dtype=np.float64)
    if reward.size != 1:
        raise ValueError(f"a reward must be one number, got the shape {reward.shape}")
    return _as_vector(flatten(result[0])), reward.item(), bool(result[2]), bool(result[3])


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


def check_environment(dataset: OfflineDataset) -> None:
    """Check that policies can be evaluated in a data set's environment, before any long work.

    An environment is made for it, reset and stepped as an evaluation does.

    Raises:
        ValueError: if the data set names no environment, the environment is not installed,
            observations or actions have other sizes there than in the data, or it cannot be played
            (:func:`try_environment`).
    """
    environment = dataset.environment
    if environment is None:
        raise ValueError(f"data set {dataset.name} names no environment to evaluate in")
    env_id = environment_id(environment)
    env = make_environment(environment)
    try:
        layout = dataset.observation_layout or ObservationLayout.of(
            env.observation_space, name=env_id, env_id=env_id
        )
        actions: object = env.action_space  # of another kind: it differs
        if isinstance(env.action_space, spaces.Box):
            actions = math.prod(env.action_space.shape)  # the data's are flattened as well
        misfit = f"data set {dataset.name} does not fit {env_id}"
        other = "env_id=none to go without"
        try:
            observations = layout.flatten(env.observation_space.sample()).shape[-1]
        except ValueError as error:
            raise ValueError(f"{misfit}: {error}; give another env_id, or {other} one") from None
        for kind, in_env, in_data in (
            ("observations", observations, dataset.observation_size),
            ("actions", actions, dataset.action_size),
        ):
            if in_env != in_data:
                raise ValueError(
                    f"{misfit}: {kind} of size {in_data} in the data and {in_env} in the "
                    f"environment; give the env_id they come from, or {other} one"
                )
        middle = dataset.denormalize_action(torch.zeros(dataset.action_size))
        try_environment(env, flatten=layout.flatten, action=middle.numpy())
    finally:
        env.close()
    for remark in bounds_that_differ(dataset):
        torchrl_logger.warning(f"{dataset.name}: {remark}")


def try_environment(
    env: gymnasium.Env, *, flatten: Flatten | None = None, action: np.ndarray | None = None
) -> None:
    """Reset an environment with a seed and take a step as an evaluation does.

    An environment without a time limit is played until it truncates an episode itself.

    Args:
        env: the environment.
        flatten: makes a vector of an observation; by its observation space where None.
        action: a policy's action [action_size], float32; zeros or the nearest where None.

    Raises:
        ValueError: if it does not follow Gymnasium's interface, fails, leaves its observation
            space, gives numbers that are not finite, or if nothing limits its episodes.
    """
    env_id = type(env.unwrapped).__name__ if env.spec is None else env.spec.id
    if action is None:
        assert isinstance(env.action_space, spaces.Box)
        low, high = (v.reshape(-1) for v in (env.action_space.low, env.action_space.high))
        action = np.zeros(low.shape, np.float32).clip(low, high)
    call = f"reset(seed={_TRIAL_SEED})"
    try:
        flatten = flatten or flattening(env)
        observation, reward, truncated = play_start(env, flatten, seed=_TRIAL_SEED), 0.0, False
        limited = env.spec is not None and env.spec.max_episode_steps is not None
        steps = 0
        while steps == 0 or not (limited or truncated or steps == _MOST_STEPS):
            _check_finite(observation, reward)
            call = f"step() with {action.dtype} actions"
            observation, reward, terminated, truncated = play_step(env, action, flatten)
            steps += 1
            if terminated and not limited:
                observation = play_start(env, flatten, seed=_TRIAL_SEED + steps)
        _check_finite(observation, reward)
    except Exception as error:  # an environment may fail in any way
        reason = " ".join(str(error).split())
        if not isinstance(error, ValueError):
            reason = f"{type(error).__name__}: {reason}"
        raise ValueError(
            f"no policy can be evaluated in {env_id}: {call} fails ({reason}); mend it, or "
            "env_id=none to go without. Gymnasium's interface is reset(seed=, options=) -> "
            "(observation, info), step(action) -> (observation, reward, terminated, truncated, "
            "info)"
        ) from error
    if not (limited or truncated):
        raise ValueError(
            f"no policy can be evaluated in {env_id}: it has no time limit and truncated no "
            f"episode in {steps} steps, so an evaluation might never end; register it with "
            "max_episode_steps=, give max_episode_steps= when arrays are loaded "
            "(--max-episode-steps with --memmap), or env_id=none to go without"
        )


def _check_finite(observation: np.ndarray, reward: float) -> None:
    if not np.isfinite(observation).all():
        raise ValueError(f"an observation is not finite: {observation}")
    if not math.isfinite(reward):
        raise ValueError(f"a reward is not finite: {reward}")


def bounds_that_differ(dataset: OfflineDataset) -> list[str]:
    """Tell where the policy may not do what the environment allows; one sentence or none."""
    if dataset.environment is None:
        return []
    low, high, space = dataset.action_low, dataset.action_high, None
    with contextlib.suppress(ValueError):  # not installed
        space = environment_spaces(dataset.environment)[1]
    other = bounds_of(space, dataset.action_size).space
    if torch.allclose(low.to(other.low), other.low) and torch.allclose(
        high.to(other.high), other.high
    ):
        return []
    return [
        f"actions lie between {low.tolist()} and {high.tolist()} in the data and between "
        f"{other.low.tolist()} and {other.high.tolist()} in {dataset.env_id}: a policy keeps to "
        "the data's bounds, so scale the data's actions if they are in other units"
    ]
