"""The environment that a data set comes from, where it is installed."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from torchrl.data import Bounded

from rambo_trl.data.simulator import mujoco_messages_logged
from rambo_trl.data.specification import (
    environment_id,
    is_maze,
    is_scored_by_success,
    of_registered_class,
    register_mazes,
)
from rambo_trl.runtime.importing import import_user_module

__all__ = [
    "action_bounds",
    "bounds_of",
    "environment_id",
    "environment_spaces",
    "is_maze",
    "is_scored_by_success",
    "make_environment",
    "of_registered_class",
    "register_mazes",
    "registered_spec",
    "time_limit",
    "with_time_limit",
]


def make_environment(
    environment: str | EnvSpec, *, render_mode: str | None = None
) -> gymnasium.Env:
    """Make the environment in which policies for a data set are played.

    AntMaze and PointMaze with sparse rewards end where the goal is reached, so that the return
    of an episode is 1 for success and else 0 (D4RL's score); by themselves they would go on and
    count the steps at the goal.

    A specification comes with a data set, whoever made it. Its arguments and time limit are
    used, but the class is the one registered under its id here, and wrappers are Gymnasium's
    only: what a file names is not imported. Nothing is drawn unless asked for.

    Args:
        environment: a Gymnasium id, ``MODULE:ID`` to import the module that registers it, or a
            specification.
        render_mode: how it is drawn, such as ``"rgb_array"``.

    Raises:
        ValueError: if it is not installed, the message says what to install; if the module
            cannot be imported; if the specification asks for another wrapper than Gymnasium's; or
            if it cannot be made.
    """
    env_id = environment_id(environment)
    try:
        with mujoco_messages_logged(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an older version than the newest is what was asked
            if is_maze(environment):
                register_mazes()
            spec = (
                copy.deepcopy(registered_spec(environment))
                if isinstance(environment, str)
                else of_registered_class(environment)
            )
            if is_scored_by_success(environment):
                spec.kwargs["continuing_task"] = False
            if render_mode is not None:
                spec.kwargs["render_mode"] = render_mode
            return _make(spec)
    except (gymnasium.error.Error, ImportError) as error:
        lines = str(error).strip().splitlines()
        install = "the package that registers it"
        if is_maze(environment):
            install = 'gymnasium-robotics (pip install "rambo_trl[maze]")'
        raise ValueError(
            f"environment {env_id} is not installed ({lines[0] if lines else error!r}): install "
            f"{install}, or give the env_id of one that is (MODULE:ID for one of your own)"
        ) from None


def _make(spec: EnvSpec) -> gymnasium.Env:
    """Make what a specification says; an error of the environment's own is one line."""
    try:
        return gymnasium.make(spec, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError):
        raise
    except Exception as error:  # an environment's constructor may fail in any way
        text = str(error).split(" was raised from the environment creator")[0]
        reason = f"{type(error).__name__}: {' '.join(text.split())}"
        raise ValueError(
            f"environment {spec.id} cannot be made with the arguments {spec.kwargs} ({reason}): "
            "give the env_id of one that can, or env_id=none to go without"
        ) from error


def registered_spec(env_id: str) -> EnvSpec:
    """The specification registered under an id; of ``MODULE:ID`` after importing the module.

    The working folder is looked in first.

    Raises:
        gymnasium.error.Error: if there is none.
        ValueError: if the module cannot be imported.
    """
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            import_user_module(module)
        except Exception as error:  # a user's module may fail in any way, by its syntax for one
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(
                f"environment {env_id}: {module} cannot be imported ({reason}); modules are looked "
                f"for in {os.getcwd()} and in the installed packages"
            ) from error
    return gymnasium.spec(name)


def time_limit(environment: str | EnvSpec | None) -> int | None:
    """Return the step limit of an environment; None if it has none or is not installed."""
    if isinstance(environment, EnvSpec) and environment.max_episode_steps is not None:
        return environment.max_episode_steps
    spec = _spec_if_installed(environment)
    return None if spec is None else spec.max_episode_steps


def with_time_limit(environment: str | EnvSpec | None, steps: int) -> EnvSpec | None:
    """Return an environment's specification with a time limit; None if it is not installed."""
    spec = _spec_if_installed(environment)
    if spec is None:
        return None
    return replace(spec, max_episode_steps=steps)


def _spec_if_installed(environment: str | EnvSpec | None) -> EnvSpec | None:
    with contextlib.suppress(gymnasium.error.Error, ImportError, ValueError):
        if is_maze(environment):
            register_mazes()
        if isinstance(environment, str):
            return registered_spec(environment)
        return environment if environment is None else of_registered_class(environment)
    return None


def environment_spaces(environment: str | EnvSpec) -> tuple[spaces.Space, spaces.Space]:
    """Make an environment and return its observation and action space.

    Raises:
        ValueError: if it is not installed; the message says what to install.
    """
    env = make_environment(environment)
    env.close()
    return env.observation_space, env.action_space


def action_bounds(environment: str | EnvSpec | None, size: int) -> Bounded:
    """Return the environment's action bounds where it is installed and fits, else [-1, 1]."""
    space = None
    if environment is not None:
        with contextlib.suppress(ValueError):  # not registered, or what it needs is not installed
            space = environment_spaces(environment)[1]
    return bounds_of(space, size)


def bounds_of(space: spaces.Space | None, size: int) -> Bounded:
    """Return the bounds of an action space where it fits, else [-1, 1]."""
    low, high = -torch.ones(size), torch.ones(size)
    if isinstance(space, spaces.Box) and np.prod(space.shape) == size:
        low, high = (torch.from_numpy(v.reshape(-1).copy()) for v in (space.low, space.high))
    return Bounded(low=low, high=high, shape=low.shape, dtype=low.dtype)
