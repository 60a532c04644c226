"""What an environment is besides its id: whose it is, its arguments, time limit and wrappers."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import re
from dataclasses import replace
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

__all__ = [
    "arguments_of",
    "environment_id",
    "is_maze",
    "is_scored_by_success",
    "keep_specification",
    "known_family",
    "of_registered_class",
    "particulars",
    "register_mazes",
    "registered_id",
    "shown_particulars",
    "specification_text",
]

_MAZE = re.compile(r"(?:Ant|Point)Maze_\w+?(Dense)?")
_PACKAGES = ("gymnasium", "gymnasium_robotics")
#: arguments and wrappers that change what is drawn, and nothing of what happens
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
    """``"Hopper"`` of Gymnasium's Hopper in any version; None of what is not Gymnasium's.

    ``MODULE:`` does not count. An id with a namespace is somebody else's environment, and so is
    one that is registered here, or was recorded, with a class of another package than Gymnasium
    and gymnasium-robotics.
    """
    if environment is None:
        return None
    env_id = registered_id(environment_id(environment))
    specs = (gymnasium.registry.get(env_id), environment)
    classes = [spec.entry_point for spec in specs if isinstance(spec, EnvSpec) and spec.entry_point]
    if "/" in env_id or any(_package(found) not in _PACKAGES for found in classes):
        return None
    return re.sub(r"-v\d+$", "", env_id)


def _package(entry_point: Any) -> str:
    """The package of a class given by path or by itself."""
    path = entry_point if isinstance(entry_point, str) else entry_point.__module__
    return re.split(r"[.:]", path)[0]


def is_maze(environment: str | EnvSpec | None) -> bool:
    """Whether it is one of gymnasium-robotics' AntMaze or PointMaze environments."""
    return _MAZE.fullmatch(known_family(environment) or "") is not None


def is_scored_by_success(environment: str | EnvSpec | None) -> bool:
    """Whether an episode's score is 100 where the goal was reached, else 0.

    So it is for AntMaze and PointMaze with their sparse rewards, as in D4RL.
    """
    match = _MAZE.fullmatch(known_family(environment) or "")
    dense = isinstance(environment, EnvSpec) and environment.kwargs.get("reward_type") == "dense"
    return match is not None and match.group(1) is None and not dense


def register_mazes() -> None:
    """Import gymnasium-robotics, which registers its environments when it is imported."""
    with contextlib.redirect_stderr(io.StringIO()):  # it tells of changes to other environments
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
    found = {
        key: value
        for key, value in environment.kwargs.items()
        if key not in _OF_DRAWING
        and (key not in arguments or _as_written(value) != _as_written(arguments[key]))
    }
    limit = environment.max_episode_steps
    if limit is not None and (usual is None or limit != usual.max_episode_steps):
        found["max_episode_steps"] = limit
    wrappers = [str(w.entry_point) for w in environment.additional_wrappers]
    wrappers = [path for path in wrappers if not path.startswith(_DRAWING_WRAPPERS)]
    return found | ({"wrappers": wrappers} if wrappers else {})


def _as_written(value: Any) -> str:
    """A value as a file keeps it: tuples are lists there."""
    return json.dumps(value, sort_keys=True, default=str)


def specification_text(spec: EnvSpec) -> str:
    """A specification as a file keeps it; its class is looked up by its id when it is made.

    Raises:
        ValueError: if an argument cannot be kept.
    """
    try:
        named = isinstance(spec.entry_point, str)
        entry_point = spec.entry_point if named else None
        return replace(spec, entry_point=entry_point, vector_entry_point=None).to_json()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the specification of {spec.id} cannot be stored ({error}): register an id of its own "
            "for these arguments"
        ) from error


def shown_particulars(environment: str | EnvSpec | None) -> str:
    """They as ``"frame_skip=2, max_episode_steps=77"``; long ones are cut."""
    texts = (f"{key}={value}" for key, value in particulars(environment).items())
    return ", ".join(text if len(text) <= 80 else f"{text[:77]}..." for text in texts)


def keep_specification(
    env_id: str | None, recorded: EnvSpec | None
) -> tuple[EnvSpec | None, list[str]]:
    """Keep a recorded specification where the given id names the same environment.

    Args:
        env_id: the id that somebody gave, if any.
        recorded: the data's own.

    Returns:
        The specification, None where the id is of another environment, and what is to be told of
        what is dropped.
    """
    if recorded is None or env_id is None:
        return recorded, []
    if recorded.id not in (env_id, registered_id(env_id)):
        dropped = shown_particulars(recorded)
        told = f"policies are evaluated in {env_id}, while the data were recorded in {recorded.id}"
        return None, [f"{told} with {dropped}, which is dropped"] if dropped else []
    foreign = [w for w in recorded.additional_wrappers if not _of_gymnasium(w)]
    if not foreign:
        return recorded, []
    names = ", ".join(str(wrapper.entry_point) for wrapper in foreign)
    kept = tuple(w for w in recorded.additional_wrappers if _of_gymnasium(w))
    return replace(recorded, additional_wrappers=kept), [
        f"policies are evaluated in {env_id} without the recorded wrappers {names}, which are not "
        "Gymnasium's and not imported: give the env_id of an environment that has them, unless "
        "they change no observation, action or reward"
    ]


def _of_gymnasium(wrapper: Any) -> bool:
    return str(wrapper.entry_point).startswith("gymnasium.wrappers.")


def of_registered_class(recorded: EnvSpec) -> EnvSpec:
    """A data set's specification with the class that is registered under its id here.

    Without a time limit it has the registered one. Nothing is drawn: what only changes the drawing,
    or keeps videos, is left out.

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
