"""From an environment's observations and actions to rows of real numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from rambo_trl.data.columns import as_numbers
from rambo_trl.data.environment import known_family

__all__ = ["ObservationLayout", "as_flags", "as_rows", "check_action_space"]

_GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


@dataclass(frozen=True)
class ObservationLayout:
    """How an environment's observation becomes the vector that the data set holds.

    A Box of any shape is flattened. Of a goal environment's dictionary the entries in ``keys``
    are flattened and joined in that order. The same object serves the data and, at evaluation,
    the environment: ``layout.flatten(env.reset()[0])``.

    Args:
        shapes: shape of each part.
        keys: entries of a dictionary observation; None for a plain array.
    """

    shapes: tuple[tuple[int, ...], ...]
    keys: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        space: spaces.Space,
        *,
        name: str,
        env_id: str | None = None,
        keys: Sequence[str] | None = None,
    ) -> ObservationLayout:
        """Choose the layout for an observation space.

        Args:
            space: a Box, or a Dict of Boxes with an entry ``"observation"``.
            name: how messages call the data set or environment.
            env_id: AntMaze's ``"observation"`` lacks the ant's position, which stands in
                ``"achieved_goal"`` only: it comes first there, as in D4RL's files.
            keys: entries of a Dict, in order; where None, ``"observation"`` and
                ``"desired_goal"`` (after ``"achieved_goal"`` for AntMaze).

        Raises:
            ValueError: if the space holds images or anything else than real numbers.
        """
        if not isinstance(space, spaces.Dict):
            if keys is not None:
                raise ValueError(
                    f"{name} has {type(space).__name__} observations without entries: leave out "
                    f"observation_keys={tuple(keys)}"
                )
            return cls((_box_shape(space, "observations", name),))
        if keys is None:
            if "observation" not in space.spaces:
                raise ValueError(
                    f"{name} has Dict observations with the entries {list(space.spaces)}: give "
                    "observation_keys=, the entries to join into the observation"
                )
            position = (known_family(env_id) or "").startswith("AntMaze_")
            wanted = ("achieved_goal",) * position + ("observation", "desired_goal")
            keys = [key for key in wanted if key in space.spaces]
        absent = [key for key in keys if key not in space.spaces]
        if absent or not keys:
            raise ValueError(
                f"{name}: observation_keys={tuple(keys)} must be entries of its Dict "
                f"observations, {list(space.spaces)}"
            )
        shapes = (_box_shape(space[key], f"observations[{key!r}]", name) for key in keys)
        return cls(tuple(shapes), tuple(keys))

    @property
    def size(self) -> int:
        """Number of entries of the flat observation."""
        return sum(math.prod(shape) for shape in self.shapes)

    def flatten(self, observation: Any) -> np.ndarray:
        """Flatten one observation to [size], or a batch with leading dimensions to [*, size].

        Raises:
            ValueError: if the observation has other shapes or lacks an entry.
        """
        if self.keys is not None and (
            not isinstance(observation, Mapping) or any(k not in observation for k in self.keys)
        ):
            raise ValueError(f"an observation must be a dictionary with the entries {self.keys}")
        parts = [observation] if self.keys is None else [observation[key] for key in self.keys]
        flat = []
        for part, shape in zip(map(np.asarray, parts), self.shapes, strict=True):
            batch = part.shape[: part.ndim - len(shape)]
            if part.shape != batch + shape:
                raise ValueError(f"an observation of shape {shape} is expected, got {part.shape}")
            flat.append(part.reshape(*batch, math.prod(shape)))
        return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=-1)


def _box_shape(space: spaces.Space, what: str, name: str) -> tuple[int, ...]:
    """Return a Box's shape; refuse other spaces and images."""
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"{name} has {type(space).__name__} {what}: only Box spaces of real numbers and Dicts "
            "of them are supported, so convert the data set or choose another"
        )
    _refuse_images(f"{name}: {what}", space.shape, space.dtype)
    return tuple(space.shape)


def check_action_space(space: spaces.Space, name: str) -> None:
    """Refuse all actions but real numbers.

    Raises:
        ValueError: naming the space.
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"{name} has {type(space).__name__} actions: RAMBO's policy needs a Box of real "
            "numbers, so choose a data set with continuous actions"
        )
    _refuse_discrete(name, space.dtype)


def as_rows(value: Any, kind: str, where: str) -> np.ndarray:
    """Read an array or table [T, *] as rows [T, size] in float32, or float64 if it is as wide.

    Args:
        value: anything that NumPy reads as one array, or a table of columns.
        kind: ``"observations"`` (no images), ``"actions"`` (no whole numbers) or ``"rewards"`` ([T]
            or [T, 1]; the result is [T]).
        where: the start of messages: data set and episode.

    Raises:
        ValueError: if these are no numbers, images or discrete actions.
    """
    if isinstance(value, tuple):
        raise ValueError(f"{where} has {type(value).__name__} {kind}: give one array of numbers")
    array = as_numbers(value, kind, where)
    if array.ndim == 0:
        raise ValueError(f"{where}: {kind} must be an array with one row per step, got one number")
    if kind == "observations":
        _refuse_images(f"{where}: {kind}", array.shape[1:], array.dtype)
    if kind == "actions" and array.size:
        _refuse_discrete(where, array.dtype)
    wide = array.dtype.itemsize > 4 or array.dtype in (np.int32, np.uint32)
    with np.errstate(over="ignore"):  # infinite values are located later
        # writeable, because torch cannot share other memory
        array = np.require(array, np.float64 if wide else np.float32, ["C", "W"])
    size = math.prod(array.shape[1:])
    if kind != "rewards":
        return array.reshape(len(array), size)
    if size != 1 and array.size:
        raise ValueError(f"{where}: rewards must be one number per step, got {array.shape}")
    return array.reshape(len(array))


def as_flags(value: Any, key: str, where: str) -> np.ndarray:
    """Read end flags [T] or [T, 1] of any number type as booleans [T].

    Raises:
        ValueError: if there is not one flag per step, or one is neither 0 nor 1.
    """
    array = as_numbers(value, key, where)
    if array.ndim == 0 or array.size != len(array):
        raise ValueError(f"{where}: {key} must be one flag per step, got shape {array.shape}")
    array = array.reshape(-1)
    wrong = np.flatnonzero((array != 0) & (array != 1))  # NaN among them, which casts to True
    if len(wrong):
        raise ValueError(
            f"{where}: {key} must be 0 or 1, but {len(wrong)} are not, the first in row {wrong[0]} "
            f"({array[wrong[0]]})"
        )
    return array.astype(bool)


def _refuse_images(what: str, shape: tuple[int, ...], dtype: Any) -> None:
    if np.dtype(dtype) == np.uint8 and len(shape) >= 2:
        raise ValueError(
            f"{what} of shape {tuple(shape)} and type {dtype} are images, which the world model "
            "cannot predict: extract a state vector first"
        )


def _refuse_discrete(name: str, dtype: Any) -> None:
    if dtype is None or np.dtype(dtype).kind != "f":
        raise ValueError(
            f"{name} has discrete actions (type {dtype}): RAMBO's policy needs actions of real "
            "numbers, so choose a continuous data set or store them as float32"
        )
