"""The environment that a data set comes from: its id, specification, time limit and bounds.

A specification that comes with a data set is used for its arguments, time limit and Gymnasium's
wrappers. No class or module is imported because a file names it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded

from rambo_trl.runtime.importing import import_user_module

__all__ = [
    "arguments_of",
    "bounds_of",
    "environment_id",
    "environment_spaces",
    "is_maze",
    "is_scored_by_success",
    "keep_specification",
    "known_family",
    "make_environment",
    "mujoco_messages_logged",
    "of_registered_class",
    "particulars",
    "registered_id",
    "registered_spec",
    "shown_particulars",
    "specification_text",
    "time_limit",
    "with_time_limit",
]

_MAZE = re.compile(r"(?:Ant|Point)Maze_\w+?(Dense)?")
_PACKAGES = ("gymnasium", "gymnasium_robotics")
#: arguments and wrappers that change how an environment is drawn, and nothing else
_OF_DRAWING = (
    "render_mode", "width", "height", "camera_id", "camera_name", "default_camera_config",
    "max_geom", "visual_options",
)  # fmt: skip
_DRAWING_WRAPPERS = "gymnasium.wrappers.rendering:"


def environment_id(environment: str | EnvSpec) -> str:
    """Return the id of an environment given by id or specification."""
    return environment if isinstance(environment, str) else environment.id


def registered_id(env_id: str) -> str:
    """The id that Gymnasium knows: without ``MODULE:``, which says what to import first."""
    return env_id.rpartition(":")[2]


def known_family(environment: str | EnvSpec | None) -> str | None:
    """``"Hopper"`` for any version of Gymnasium's Hopper; None for environments not Gymnasium's.

    ``MODULE:`` does not count. An id with a namespace is somebody else's environment, and so is
    one that is registered here, or was recorded, with a class of another package than Gymnasium
    and gymnasium-robotics.
    """
    if environment is None:
        return None
    env_id = registered_id(environment_id(environment))
    specs = (gymnasium.registry.get(env_id), environment)
    classes = [spec.entry_point for spec in specs if isinstance(spec, EnvSpec) and spec.entry_point]
    packages = {
        re.split(r"[.:]", path if isinstance(path, str) else path.__module__)[0] for path in classes
    }
    if "/" in env_id or not packages <= set(_PACKAGES):
        return None
    return re.sub(r"-v\d+$", "", env_id)


def is_maze(environment: str | EnvSpec | None) -> bool:
    """Whether it is one of gymnasium-robotics' AntMaze or PointMaze environments."""
    return _MAZE.fullmatch(known_family(environment) or "") is not None


def is_scored_by_success(environment: str | EnvSpec | None) -> bool:
    """Whether an episode scores 100 where the goal was reached, else 0.

    This holds for AntMaze and PointMaze with sparse rewards, as in D4RL.
    """
    match = _MAZE.fullmatch(known_family(environment) or "")
    dense = isinstance(environment, EnvSpec) and environment.kwargs.get("reward_type") == "dense"
    return match is not None and match.group(1) is None and not dense


def register_mazes() -> None:
    """Import gymnasium-robotics, which registers its environments when it is imported."""
    with contextlib.redirect_stderr(io.StringIO()):  # it announces changes to other environments
        importlib.import_module("gymnasium_robotics")


def arguments_of(environment: str | EnvSpec | None) -> dict[str, Any]:
    """The arguments that an environment is made with, as far as they are known."""
    if isinstance(environment, str):
        environment = gymnasium.registry.get(registered_id(environment))
    return {} if environment is None else environment.kwargs


def particulars(environment: str | EnvSpec | None) -> dict[str, Any]:
    """What a specification has beyond what is registered under its id here, by name.

    Arguments, ``max_episode_steps`` and ``wrappers``; without what only changes the drawing.
    """
    if not isinstance(environment, EnvSpec):
        return {}
    if is_maze(environment):
        with contextlib.suppress(ImportError):
            register_mazes()
    usual = gymnasium.registry.get(environment.id)
    arguments = {} if usual is None else dict(usual.kwargs)
    if is_scored_by_success(environment):
        arguments["continuing_task"] = environment.kwargs.get("continuing_task")  # set when made

    def written(value: Any) -> str:  # as a file keeps it: tuples are lists there
        return json.dumps(value, sort_keys=True, default=str)

    special = {
        key: value
        for key, value in environment.kwargs.items()
        if key not in _OF_DRAWING
        and (key not in arguments or written(value) != written(arguments[key]))
    }
    limit = environment.max_episode_steps
    if limit is not None and (usual is None or limit != usual.max_episode_steps):
        special["max_episode_steps"] = limit
    wrappers = [str(w.entry_point) for w in environment.additional_wrappers]
    wrappers = [path for path in wrappers if not path.startswith(_DRAWING_WRAPPERS)]
    return special | ({"wrappers": wrappers} if wrappers else {})


def shown_particulars(environment: str | EnvSpec | None) -> str:
    """The particulars as ``"frame_skip=2, max_episode_steps=77"``; long ones are cut."""
    texts = (f"{key}={value}" for key, value in particulars(environment).items())
    return ", ".join(text if len(text) <= 80 else f"{text[:77]}..." for text in texts)


def specification_text(spec: EnvSpec) -> str:
    """A specification as JSON; its class is looked up by its id when it is made.

    Raises:
        ValueError: if an argument cannot be stored.
    """
    try:
        entry_point = spec.entry_point if isinstance(spec.entry_point, str) else None
        return replace(spec, entry_point=entry_point, vector_entry_point=None).to_json()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the specification of {spec.id} cannot be stored ({error}): register an id of its own "
            "for these arguments"
        ) from error


def keep_specification(
    env_id: str | None, recorded: EnvSpec | None
) -> tuple[EnvSpec | None, list[str]]:
    """Keep a recorded specification where the given id, if any, names the same environment.

    Returns:
        The specification, None where the id is of another environment; and remarks on what is
        dropped.
    """
    if recorded is None or env_id is None:
        return recorded, []
    if recorded.id not in (env_id, registered_id(env_id)):
        dropped = shown_particulars(recorded)
        remark = (
            f"policies are evaluated in {env_id}, while the data were recorded in {recorded.id}"
        )
        return None, [f"{remark} with {dropped}, which is dropped"] if dropped else []
    kept = tuple(w for w in recorded.additional_wrappers if _of_gymnasium(w))
    foreign = [str(w.entry_point) for w in recorded.additional_wrappers if not _of_gymnasium(w)]
    if not foreign:
        return recorded, []
    return replace(recorded, additional_wrappers=kept), [
        f"policies are evaluated in {env_id} without the recorded wrappers {', '.join(foreign)}, "
        "which are not Gymnasium's and not imported: give the env_id of an environment that has "
        "them, unless they change no observation, action or reward"
    ]


def _of_gymnasium(wrapper: Any) -> bool:
    return str(wrapper.entry_point).startswith("gymnasium.wrappers.")


def of_registered_class(recorded: EnvSpec) -> EnvSpec:
    """A data set's specification with the class that is registered under its id here.

    Its time limit too, without one. Whatever only draws it or records videos is left out.

    Raises:
        gymnasium.error.NameNotFound: if there is none.
        ValueError: if there is another wrapper than Gymnasium's.
    """
    if is_maze(recorded):
        register_mazes()
    # looked up, not asked of Gymnasium, which would import the module of an id MODULE:ID
    registered = gymnasium.registry.get(recorded.id)
    if registered is None:
        raise gymnasium.error.NameNotFound(
            f"{recorded.id} ({recorded.entry_point}) is not registered"
        )
    for wrapper in recorded.additional_wrappers:
        if not _of_gymnasium(wrapper):
            raise ValueError(
                f"the data set's environment {recorded.id} asks for the wrapper "
                f"{wrapper.entry_point}, which is not Gymnasium's and is not imported: give the "
                "env_id of an environment that has it, or env_id=none"
            )
    spec = copy.deepcopy(recorded)
    spec.entry_point = registered.entry_point
    spec.vector_entry_point = registered.vector_entry_point
    if spec.max_episode_steps is None:
        spec.max_episode_steps = registered.max_episode_steps
    spec.kwargs.pop("render_mode", None)
    spec.additional_wrappers = tuple(
        wrapper
        for wrapper in spec.additional_wrappers
        if not str(wrapper.entry_point).startswith(_DRAWING_WRAPPERS)
    )
    return spec


def registered_spec(env_id: str) -> EnvSpec:
    """The specification registered under an id; of ``MODULE:ID`` after importing the module.

    Modules are looked for in the working folder first.

    Raises:
        gymnasium.error.Error: if there is none.
        ValueError: if the module cannot be imported.
    """
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            import_user_module(module)
        except Exception as error:  # a user's module may fail in any way
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(
                f"environment {env_id}: {module} cannot be imported ({reason}); modules are looked "
                f"for in {os.getcwd()} and in the installed packages"
            ) from error
    elif is_maze(env_id):
        register_mazes()
    return gymnasium.spec(name)


def _installed_spec(environment: str | EnvSpec) -> EnvSpec:
    if isinstance(environment, str):
        return registered_spec(environment)
    return of_registered_class(environment)


def make_environment(
    environment: str | EnvSpec, *, render_mode: str | None = None
) -> gymnasium.Env:
    """Make the environment in which policies for a data set are played.

    AntMaze and PointMaze with sparse rewards end where the goal is reached, so that the return of
    an episode is 1 for success and else 0 (D4RL's score).

    Args:
        environment: a Gymnasium id, ``MODULE:ID`` to import the module that registers it, or a
            specification, of which the class is the one registered under its id here.
        render_mode: how it is drawn, such as ``"rgb_array"``; by default nothing is drawn.

    Raises:
        ValueError: if it is not installed (the message says what to install), its module cannot be
            imported, the specification asks for another wrapper than Gymnasium's, or it cannot be
            made.
    """
    env_id = environment_id(environment)
    try:
        with mujoco_messages_logged(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an older version than the newest is intended
            spec = copy.deepcopy(_installed_spec(environment))
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
    """Make what a specification says; an error of the environment itself becomes one line."""
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


def time_limit(environment: str | EnvSpec | None) -> int | None:
    """Return the step limit of an environment; None if it has none or is not installed."""
    if isinstance(environment, EnvSpec) and environment.max_episode_steps is not None:
        return environment.max_episode_steps
    spec = with_time_limit(environment, None)
    return None if spec is None else spec.max_episode_steps


def with_time_limit(environment: str | EnvSpec | None, steps: int | None) -> EnvSpec | None:
    """Return an environment's specification with a time limit, or with the registered one.

    None if it is not installed.
    """
    if environment is None:
        return None
    with contextlib.suppress(gymnasium.error.Error, ImportError, ValueError):
        spec = _installed_spec(environment)
        return spec if steps is None else replace(spec, max_episode_steps=steps)
    return None


def environment_spaces(environment: str | EnvSpec) -> tuple[spaces.Space, spaces.Space]:
    """Make an environment and return its observation and action space.

    Raises:
        ValueError: if it is not installed; the message says what to install.
    """
    env = make_environment(environment)
    env.close()
    return env.observation_space, env.action_space


def bounds_of(space: spaces.Space | None, size: int) -> Bounded:
    """Return the bounds of an action space where it has this size, else [-1, 1]."""
    low, high = -torch.ones(size), torch.ones(size)
    if isinstance(space, spaces.Box) and np.prod(space.shape) == size:
        low, high = (torch.from_numpy(v.reshape(-1).copy()) for v in (space.low, space.high))
    return Bounded(low=low, high=high, shape=low.shape, dtype=low.dtype)


@contextlib.contextmanager
def mujoco_messages_logged() -> Iterator[None]:
    """Send MuJoCo's warnings to TorchRL's logger, each text once.

    MuJoCo by itself prints a warning for every model that it compiles from a file with an old
    attribute, HalfCheetah's among them, and appends it to ``MUJOCO_LOG.TXT`` in the working
    folder. Deprecations are logged at level debug, others (an unstable simulation) as warnings.
    Without MuJoCo nothing happens.
    """
    try:
        import mujoco
    except ImportError:
        yield
        return
    seen: set[str] = set()

    def log(message: str) -> None:
        if message not in seen:
            seen.add(message)
            level = logging.DEBUG if "deprecated" in message else logging.WARNING
            torchrl_logger.log(level, f"MuJoCo: {message}")

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(log)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
