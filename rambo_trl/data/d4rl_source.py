"""Data in D4RL's layout: flat arrays with end flags, in HDF5 files or in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDict
from torchrl.data import Bounded

from rambo_trl.data.checks import DataWarning, step_intervals
from rambo_trl.data.columns import as_numbers, names_of
from rambo_trl.data.environment import bounds_of, environment_id, environment_spaces
from rambo_trl.data.episodes import LoggedEpisodes, flat_columns
from rambo_trl.data.names import bundled_equivalent, nearest_files, parse_d4rl_name
from rambo_trl.data.scaling import needs_double
from rambo_trl.data.spaces import as_flags, as_rows, check_action_space
from rambo_trl.data.storage import why_unreadable

__all__ = [
    "UnknownTerminalStates",
    "default_bounds",
    "episode_ends",
    "flat_source",
    "is_d4rl_file",
    "read_d4rl_file",
]

UnknownTerminalStates = Literal["hold", "drop"]

_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations", "timestamps")
_STATES = ("observations", "next_observations")
_KINDS = ("observation", "action")
_SUFFIXES = (".hdf5", ".h5")
_GIVE_SPEC = (
    "action_spec (--action-low and --action-high of python -m rambo_trl.data, with --memmap)"
)


def is_d4rl_file(path: Path) -> bool:
    """Whether a name or path means a D4RL file: an existing file, or one named like it."""
    return path.is_file() or (path.suffix.lower() in _SUFFIXES and not path.is_dir())


def read_d4rl_file(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...] | None]]:
    """Read the arrays of a D4RL-format HDF5 file, and the names of their entries.

    Rows in double precision become float32 at once, to save memory, unless that would lose what
    matters. Names come from the attribute ``names`` of the arrays.

    Raises:
        ValueError: if there is no such file, it cannot be read, or arrays are missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no data file {path}: {_instead_of_missing(path)}")
    try:
        with h5py.File(path, "r") as file:
            inside = list(file)
            stored = {key: file.get(key) for key in _REQUIRED + _OPTIONAL}
            stored = {k: v for k, v in stored.items() if isinstance(v, h5py.Dataset)}
            arrays = {key: _narrowed(value[()]) for key, value in stored.items()}
            if any(arrays[k].dtype == np.float64 for k in _STATES if k in arrays):
                # both alike, or no value would equal the next row's any more
                arrays |= {key: stored[key][()] for key in _STATES if key in arrays}
            names = {f"{k}_names": _stored_names(stored.get(f"{k}s")) for k in _KINDS}
    except Exception as error:  # h5py's errors are of many types
        how = {"damaged": "is truncated, corrupt or no HDF5 file"}
        if path.suffix.lower() not in _SUFFIXES:
            how = {
                "damaged": "is no HDF5 file",
                "remedy": "make a data set of it, which for logs such as CSV files takes a few "
                "lines (docs/tutorials/own_data.md)",
            }
        raise ValueError(f"{path} {why_unreadable(error, **how)}") from error
    missing = [key for key in _REQUIRED if key not in arrays]
    if missing:
        hint = f"it holds {', '.join(inside[:8]) or 'nothing'}"
        if "episode_0" in inside:
            hint = "it looks like the inside of a Minari set, so give that set's folder instead"
        raise ValueError(
            f"{path} lacks {', '.join(missing)}: a D4RL file needs {', '.join(_REQUIRED)}; {hint}"
        )
    return arrays, names


def _narrowed(values: np.ndarray) -> np.ndarray:
    """Make float64 rows [N, *] float32 where that keeps what matters."""
    if values.ndim < 2 or values.dtype != np.float64:
        return values
    if needs_double(torch.from_numpy(values).flatten(1)):
        return values
    with np.errstate(over="ignore"):  # infinite values are located later
        return values.astype(np.float32)


def _stored_names(stored: h5py.Dataset | None) -> tuple[str, ...] | None:
    names = None if stored is None else stored.attrs.get("names")
    if names is None:
        return None
    return tuple(n.decode() if isinstance(n, bytes) else str(n) for n in np.ravel(names))


def _instead_of_missing(path: Path) -> str:
    """Say what to do about a file that does not exist."""
    if parse_d4rl_name(path) is None:
        near = nearest_files(path)
        return f"did you mean {' or '.join(near)}?" if near else "check the path"
    bundled = bundled_equivalent(path)
    other = "no bundled set is of its kind"
    if bundled is not None:
        other = f"or take dataset={bundled}, data of its kind that is made on this machine"
    return (
        "give D4RL's file by its path, dataset=PATH, or put it there; "
        f"{other} (docs/tasks.md tells what exists where)"
    )


def episode_ends(
    terminals: np.ndarray,
    timeouts: np.ndarray | None,
    *,
    observations: np.ndarray,
    next_observations: np.ndarray | None = None,
    max_episode_steps: int | None = None,
) -> np.ndarray:
    """Find the rows [N] after which an episode ends; the last may be False: an unfinished episode.

    A terminal or a timeout ends an episode. So does, with ``next_observations``, every row whose
    next observation is not the next row's observation. Without them, where no timeout is set, an
    episode is cut after ``max_episode_steps``, as D4RL itself does for files without timeouts. If
    no limit is known either, terminals alone are believed if the last row is one: a last row
    without a flag is an end that the flags leave out, and there may be more.

    Args:
        terminals: [N], bool.
        timeouts: [N], bool, or None.
        observations: [N, size].
        next_observations: [N, size] or None.
        max_episode_steps: time limit of the environment, if known.

    Raises:
        ValueError: if nothing tells where episodes end, so that the start of an episode could pass
            for the end of another.
    """
    ends = terminals.copy() if timeouts is None else terminals | timeouts
    if next_observations is not None:
        ends[:-1] |= (next_observations[:-1] != observations[1:]).any(-1)
        return ends
    if timeouts is not None and timeouts.any():
        return ends
    if max_episode_steps is None:
        if timeouts is not None and terminals[-1]:
            return ends
        lacking = "has neither timeouts nor next_observations"
        if timeouts is not None:
            lacking = "has no next_observations, no timeout is set and its last row is no terminal"
        raise ValueError(
            f"it {lacking}, so where episodes are cut is unknown: add next_observations, set the "
            "timeouts (on the last row of a single long episode too), or give env_id= of a "
            "registered environment with a time limit, or max_episode_steps= (--max-episode-steps)"
        )
    starts = np.concatenate([[0], np.flatnonzero(ends) + 1])
    for start, stop in zip(starts, np.append(starts[1:], len(ends)), strict=True):
        ends[start + max_episode_steps - 1 : stop : max_episode_steps] = True
    return ends


def flat_source(
    arrays: Mapping[str, Any],
    name: str,
    *,
    max_episode_steps: int | None = None,
    unknown_terminal_states: UnknownTerminalStates = "hold",
) -> tuple[TensorDict, dict[str, Any]]:
    """Turn arrays in D4RL's layout into transitions, as for ``OfflineDataset.from_arrays``.

    Where the last row of a truncated episode is left out, the row before it is marked truncated.

    Raises:
        ValueError: if arrays are missing, differ in length, are empty or no real numbers.
    """
    missing = [key for key in _REQUIRED if arrays.get(key) is None]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}: {', '.join(_REQUIRED)} are needed")
    if unknown_terminal_states not in ("hold", "drop"):
        raise ValueError(
            f"unknown_terminal_states must be 'hold' or 'drop', got {unknown_terminal_states!r}"
        )
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}")
    values = {
        key: as_numbers(arrays[key], key, name) if key != "timestamps" else np.asarray(arrays[key])
        for key in _REQUIRED + _OPTIONAL
        if arrays.get(key) is not None
    }
    lengths = {key: len(value) if value.ndim else 0 for key, value in values.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name}: arrays differ in length, {lengths}: give one row per step")
    if lengths["rewards"] == 0:
        raise ValueError(f"{name} is empty: give at least one step")

    observations, actions, rewards = (
        as_rows(values[key], key, name) for key in ("observations", "actions", "rewards")
    )
    terminals = as_flags(values["terminals"], "terminals", name)
    timeouts = next_observations = None
    if "timeouts" in values:
        timeouts = as_flags(values["timeouts"], "timeouts", name)
    if "next_observations" in values:
        shapes = [values[key].shape for key in _STATES]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name}: next_observations of shape {shapes[1]} must have the shape of "
                f"observations, {shapes[0]}"
            )
        named = [names_of(arrays[key]) for key in _STATES]
        if None not in named and named[0] != named[1]:
            raise ValueError(
                f"{name}: next_observations must have the columns of observations in their order, "
                f"{named[0]}, got {named[1]}"
            )
        next_observations = as_rows(values["next_observations"], "observations", name)
    try:
        ends = episode_ends(
            terminals,
            timeouts,
            observations=observations,
            next_observations=next_observations,
            max_episode_steps=max_episode_steps,
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None

    ends[-1] = True
    truncated = ends & ~terminals
    if timeouts is not None:
        truncated |= terminals & timeouts  # both at once: reported later, and then terminal
    remarks: list[str] = []
    intervals: dict[str, float] = {}
    if "timestamps" in values:
        intervals, remarks = step_intervals(values["timestamps"], ends, name)
    if next_observations is None:
        lost = ends & ~terminals if unknown_terminal_states == "hold" else ends
        remarks += _remarks_without_next(
            ends, lost, terminals, timeouts, max_episode_steps=max_episode_steps
        )
    elif unknown_terminal_states == "drop":
        lost = terminals & ~np.isfinite(next_observations).all(-1)
    else:
        lost = np.zeros_like(ends)
    if (lost & terminals).any():
        remarks.append(
            f"{(lost & terminals).sum()} terminal rows are left out with their rewards, as their "
            'next observations are missing: unknown_terminal_states="hold" keeps them'
        )
    # The row before one that is left out becomes its episode's last.
    truncated[:-1] |= lost[1:] & ~ends[:-1]
    rows = np.flatnonzero(~lost)
    if len(rows) == 0:
        raise ValueError(
            f"{name} is empty without its episodes' last rows, of which no next observation is "
            "known: add next_observations"
        )
    if next_observations is None:  # a terminal row's own observation stands in
        next_observations = observations[rows + ~terminals[rows]]
    columns = (observations, actions, next_observations, rewards, terminals, truncated)
    transitions = flat_columns(*(c if len(c) == len(rows) else c[rows] for c in columns))
    # returns in float64, rows left out included
    stops = np.flatnonzero(ends) + 1
    parts = np.split(values["rewards"].reshape(-1), stops[:-1])
    returns = np.array([part.sum(dtype=np.float64) for part in parts])
    closed = terminals if timeouts is None else terminals | timeouts
    episodes = LoggedEpisodes.of(returns, stops, closed[stops - 1], max_episode_steps)
    kept = np.concatenate([[0], np.cumsum(~lost)])[episodes.rows]
    episodes = replace(episodes, rows=kept[kept[:, 0] < kept[:, 1]])
    remarks += episodes.remarks
    return transitions, {"episodes": episodes, "remarks": remarks, "step_intervals": intervals}


def _remarks_without_next(
    ends: np.ndarray,
    lost: np.ndarray,
    terminals: np.ndarray,
    timeouts: np.ndarray | None,
    *,
    max_episode_steps: int | None,
) -> list[str]:
    """Tell what becomes of rows without a next observation, and where an end may be missing."""
    remarks: list[str] = []
    unlimited = max_episode_steps is None and timeouts is not None and not timeouts.any()
    if unlimited and not terminals.all():
        remarks.append(
            f"no timeout is set, no time limit is known and all {ends.sum()} episodes end in "
            "terminals: if some were cut without a flag, give max_episode_steps= "
            "(--max-episode-steps)"
        )
    steps = np.diff(np.flatnonzero(ends), prepend=-1)
    too_long = 0 if max_episode_steps is None else int((steps > max_episode_steps).sum())
    if too_long:
        remarks.append(
            DataWarning(
                f"{too_long} episodes are longer than the {max_episode_steps} steps that the "
                "environment allows: if timeouts are missing, ends pass for steps; leave the "
                "timeouts out, and episodes are cut at the limit"
            )
        )
    cut = lost & ~terminals
    if cut.any():
        remarks.append(
            f"without next_observations the last rows of {cut.sum()} truncated episodes are left "
            "out"
        )
    held = terminals & ~lost
    if held.any():
        remarks.append(
            f"{held.sum()} terminal rows have no next observation, so their own stands in: "
            "prefer a file with next_observations"
        )
    return remarks


def default_bounds(
    environment: str | EnvSpec | None,
    actions: np.ndarray,
    name: str,
    action_names: Sequence[str] | None = None,
) -> tuple[Bounded, str, list[str]]:
    """The environment's action bounds where it is installed and fits, else D4RL's [-1, 1].

    Args:
        environment: id or specification, if any.
        actions: the data's, [N, act].
        name: how messages call the data set.
        action_names: of the entries, if any.

    Returns:
        The bounds; where they come from and what to do if actions leave them; and, where they are
        assumed, a warning of an entry that is never negative or never positive, such as a valve's.

    Raises:
        ValueError: if the environment's actions are no real numbers.
    """
    size = actions.shape[1]
    remedy = f"give the env_id that the data come from, or {_GIVE_SPEC}"
    if environment is None:
        reason = "no environment is named"
        remedy = f"give env_id (recipes: env_id=...), or {_GIVE_SPEC}"
    else:
        env_id = environment_id(environment)
        try:
            space = environment_spaces(environment)[1]
        except ValueError as error:  # not registered, or what it needs is not installed
            reason, remedy = str(error), f"or give {_GIVE_SPEC}"
        else:
            check_action_space(space, f"{name}: environment {env_id}")
            in_env = math.prod(space.shape or ())
            if in_env == size:
                remedy = f"the bounds are those of {env_id}; {remedy}, or clip the actions"
                return bounds_of(space, size), remedy, []
            reason = f"{env_id} has actions of another size ({in_env}, not {size})"
    remedy = f"the bounds are assumed, because {reason}; {remedy}"
    low, high = actions.min(axis=0), actions.max(axis=0)
    one_sided = np.flatnonzero((low < high) & ((low >= 0) | (high <= 0)))[:1]
    labels = [f"action entry {i}" for i in range(size)]
    if action_names is not None and len(action_names) == size:  # others are refused later
        labels = list(action_names)
    warned = [
        DataWarning(
            f"{labels[i]} lies between {low[i]:g} and {high[i]:g} in the data, but is taken to "
            f"have the bounds -1 and 1, all of which a policy may use: {remedy}"
        )
        for i in one_sided.tolist()
    ]
    return bounds_of(None, size), remedy, list(warned)
