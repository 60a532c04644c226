"""The environment that a data set comes from, where it is installed."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import os
import re
import warnings

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from torchrl.data import Bounded

from rambo_trl.data.simulator import mujoco_messages_logged
from rambo_trl.importing import import_user_module

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
]

_MAZE = re.compile(r"(?:Ant|Point)Maze_\w+?(Dense)?-v\d+")


def is_maze(env_id: str | None) -> bool:
    """Whether an id is one of gymnasium-robotics' AntMaze or PointMaze environments."""
    return _MAZE.fullmatch(_bare(env_id)) is not None


def is_scored_by_success(env_id: str | None) -> bool:
    """Whether an episode's score is 100 where the goal was reached, else 0.

    So it is for AntMaze and PointMaze with their sparse rewards, as in D4RL.
    """
    match = _MAZE.fullmatch(_bare(env_id))
    return match is not None and match.group(1) is None


def make_environment(environment: str | EnvSpec) -> gymnasium.Env:
    """Make the environment in which policies for a data set are played.

    AntMaze and PointMaze with sparse rewards end where the goal is reached, so that the return
    of an episode is 1 for success and else 0 (D4RL's score); by themselves they would go on and
    count the steps at the goal.

    A specification comes with a data set, whoever made it. Its arguments and time limit are
    used, but the class is the one registered under its id here, and wrappers are Gymnasium's
    only: what a file names is not imported.

    Args:
        environment: a Gymnasium id, ``MODULE:ID`` to import the module that registers it, or a
            specification.

    Raises:
        ValueError: if it is not installed, the message says what to install; if the module
            cannot be imported; or if the specification asks for another wrapper than Gymnasium's.
    """
    env_id = environment_id(environment)
    try:
        with mujoco_messages_logged(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an older version than the newest is what was asked
            if is_maze(env_id):
                register_mazes()
            spec = (
                copy.deepcopy(_spec_of(environment))
                if isinstance(environment, str)
                else of_registered_class(environment)
            )
            if is_scored_by_success(env_id):
                spec.kwargs["continuing_task"] = False
            return gymnasium.make(spec, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        lines = str(error).strip().splitlines()
        install = "the package that registers it"
        if is_maze(env_id):
            install = 'gymnasium-robotics (pip install "rambo_trl[maze]")'
        raise ValueError(
            f"environment {env_id} is not installed ({lines[0] if lines else error!r}): install "
            f"{install}, or give the env_id of one that is (MODULE:ID for one of your own)"
        ) from None


def _spec_of(env_id: str) -> EnvSpec:
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


def of_registered_class(recorded: EnvSpec) -> EnvSpec:
    """A data set's specification with the class that is registered under its id here.

    Raises:
        gymnasium.error.NameNotFound: if there is none.
        ValueError: if there is another wrapper than Gymnasium's.
    """
    # looked up, not asked of Gymnasium, which would import the module of an id MODULE:ID
    registered = gymnasium.registry.get(recorded.id)
    if registered is None:
        raise gymnasium.error.NameNotFound(
            f"{recorded.id} ({recorded.entry_point}) is not registered"
        )
    for wrapper in recorded.additional_wrappers:
        if not str(wrapper.entry_point).startswith("gymnasium.wrappers."):
            raise ValueError(
                f"the data set's environment {recorded.id} asks for the wrapper "
                f"{wrapper.entry_point}, which is not Gymnasium's and is not imported: give the "
                "env_id of an environment that has it, or env_id=none"
            )
    spec = copy.deepcopy(recorded)
    spec.entry_point = registered.entry_point
    spec.vector_entry_point = registered.vector_entry_point
    return spec


def environment_id(environment: str | EnvSpec) -> str:
    """Return the id of an environment given by id or specification."""
    return environment if isinstance(environment, str) else environment.id


def environment_spaces(environment: str | EnvSpec) -> tuple[spaces.Space, spaces.Space]:
    """Make an environment and return its observation and action space.

    Raises:
        ValueError: if it is not installed; the message says what to install.
    """
    env = make_environment(environment)
    env.close()
    return env.observation_space, env.action_space


def action_bounds(env_id: str | None, size: int) -> Bounded:
    """Return the environment's action bounds where it is installed and fits, else [-1, 1]."""
    space = None
    if env_id is not None:
        with contextlib.suppress(ValueError):  # not registered, or what it needs is not installed
            space = environment_spaces(env_id)[1]
    return bounds_of(space, size)


def bounds_of(space: spaces.Space | None, size: int) -> Bounded:
    """Return the bounds of an action space where it fits, else [-1, 1]."""
    low, high = -torch.ones(size), torch.ones(size)
    if isinstance(space, spaces.Box) and np.prod(space.shape) == size:
        low, high = (torch.from_numpy(v.reshape(-1).copy()) for v in (space.low, space.high))
    return Bounded(low=low, high=high, shape=low.shape, dtype=low.dtype)


def _bare(env_id: str | None) -> str:
    """Strip the module and namespace of an id."""
    return re.split(r"[:/]", env_id or "")[-1]


def register_mazes() -> None:
    """Import gymnasium-robotics, which registers its environments when it is imported."""
    with contextlib.redirect_stderr(io.StringIO()):  # it tells of changes to other environments
        importlib.import_module("gymnasium_robotics")
