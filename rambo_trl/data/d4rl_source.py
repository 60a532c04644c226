"""Data in D4RL's layout: flat arrays with end flags, in HDF5 files or in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from tensordict import TensorDict

from rambo_trl.data.checks import Oddity
from rambo_trl.data.columns import as_numbers, names_of
from rambo_trl.data.d4rl_names import beside, bundled_kin, parse_d4rl_name
from rambo_trl.data.episodes import flat_columns
from rambo_trl.data.pieces import LoggedEpisodes, find_whole
from rambo_trl.data.sampling import step_intervals
from rambo_trl.data.spaces import as_flags, as_rows
from rambo_trl.data.unreadable import why_unreadable

__all__ = [
    "FlatSource",
    "UnknownTerminalStates",
    "episode_ends",
    "flat_source",
    "is_d4rl_file",
    "read_d4rl_file",
]

UnknownTerminalStates = Literal["hold", "drop"]

_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations", "timestamps")
_ROWS_AT_ONCE = 65_536
_SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True)
class FlatSource:
    """Transitions read from flat arrays.

    Attributes:
        transitions: TensorDict [N].
        episodes: which are whole, with their returns, rows left out included.
        intervals: the time between rows; see :func:`rambo_trl.data.sampling.step_intervals`.
        remarks: what was left out or filled in, one sentence each; an :class:`Oddity` where it
            may be a mistake.
    """

    transitions: TensorDict
    episodes: LoggedEpisodes
    remarks: tuple[str, ...]
    intervals: dict[str, float] = field(default_factory=dict)


def is_d4rl_file(path: Path) -> bool:
    """Whether a name or path means a D4RL file: an existing file, or one named like it."""
    return path.is_file() or (path.suffix.lower() in _SUFFIXES and not path.is_dir())


def read_d4rl_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the arrays of a D4RL-format HDF5 file.

    Args:
        path: the file.

    Returns:
        ``observations``, ``actions``, ``rewards``, ``terminals`` and, where the file has them,
        ``timeouts``, ``next_observations`` and ``timestamps``, as stored.

    Raises:
        ValueError: if there is no such file, it cannot be read, or arrays are missing.
    """
    if not Path(path).is_file():
        raise ValueError(f"no data file {os.fspath(path)}: {_instead(Path(path))}")
    arrays = {}
    try:
        with h5py.File(path, "r") as file:
            names = list(file)
            found = {key: file.get(key) for key in _REQUIRED + _OPTIONAL}
            stored = {k: v for k, v in found.items() if isinstance(v, h5py.Dataset)}
            # both alike, or none of the values would follow each other any more
            states = stored.keys() & {"observations", "next_observations"}
            double = any(_has_offset(stored[key]) for key in states)
            for key, values in stored.items():
                kept = double if key in states else _has_offset(values)
                arrays[key] = values[()] if kept else _read(values)
    except Exception as error:  # h5py's errors are of many types
        how = {"damaged": "is truncated, corrupt or no HDF5 file"}
        if Path(path).suffix.lower() not in _SUFFIXES:
            how = {
                "damaged": "is no HDF5 file",
                "remedy": "make a data set of it, which for logs such as CSV files takes a few "
                "lines (docs/tutorials/own_data.md)",
            }
        raise ValueError(f"{path} {why_unreadable(error, **how)}") from error
    missing = [key for key in _REQUIRED if key not in arrays]
    if missing:
        hint = f"it holds {', '.join(names[:8]) or 'nothing'}"
        if "episode_0" in names:
            hint = "it looks like the inside of a Minari set, so give that set's folder instead"
        raise ValueError(
            f"{path} lacks {', '.join(missing)}: a D4RL file needs {', '.join(_REQUIRED)}; {hint}"
        )
    return arrays


def _instead(path: Path) -> str:
    """Say what to do about a file that is not there."""
    if parse_d4rl_name(path) is None:
        near = beside(path)
        return f"did you mean {' or '.join(near)}?" if near else "check the path"
    kin = bundled_kin(path)
    other = "no bundled set is of its kind"
    if kin is not None:
        other = f"or take dataset={kin}, data of its kind that is made on this machine"
    return (
        "give D4RL's file by its path, dataset=PATH, or put it there; "
        f"{other} (docs/tasks.md tells what exists where)"
    )


def _read(stored: h5py.Dataset) -> np.ndarray:
    """Read an array; wide rows in double precision become float32 bit by bit, to save memory."""
    if not _is_wide(stored):
        return stored[()]
    array = np.empty(stored.shape, np.float32)
    with np.errstate(over="ignore"):  # what becomes infinite is found and located later
        for start in range(0, len(array), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            array[part] = stored[part]
    return array


def _is_wide(stored: h5py.Dataset) -> bool:
    return stored.ndim >= 2 and stored.dtype == np.float64 and len(stored) > 0


def _has_offset(stored: h5py.Dataset) -> bool:
    """Whether a column's largest value is beyond 50 of its standard deviations.

    Missing values do not count: a terminal row may have no next observation.
    """
    if not _is_wide(stored):
        return False
    total, squares, largest, count, first = (np.zeros(stored.shape[1:]) for _ in range(5))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, len(stored), _ROWS_AT_ONCE):
            part = stored[start : start + _ROWS_AT_ONCE]
            known = np.isfinite(part)
            # the first known value of each column, so that squares of an offset do not swallow it
            new = np.take_along_axis(part, known.argmax(axis=0)[None], axis=0)[0]
            first = np.where((count == 0) & np.isfinite(new), new, first)
            part = np.where(known, part, first)
            count += known.sum(axis=0)
            largest = np.maximum(largest, np.abs(part).max(axis=0))
            total += (part - first).sum(axis=0)
            squares += np.square(part - first).sum(axis=0)
        variance = squares / count - np.square(total / count)
        return bool(((variance > 0) & (np.square(largest) > 2500 * variance)).any())


def episode_ends(
    terminals: np.ndarray,
    timeouts: np.ndarray | None,
    *,
    observations: np.ndarray,
    next_observations: np.ndarray | None = None,
    max_episode_steps: int | None = None,
) -> np.ndarray:
    """Find the rows after which an episode ends.

    A terminal or a timeout ends an episode. Where ``next_observations`` are there, so does every
    row whose next observation is not the following row's observation: no flag is needed. Else,
    where no timeout is set, no episode can be longer than ``max_episode_steps``: a longer one is
    cut after so many rows, as D4RL itself does for files without timeouts.

    Where no timeout is set, nothing else is there and no limit is known, terminals alone are
    believed if the last row is one: every row then belongs to an episode of which the end is
    flagged. A last row without a flag is an end that the flags leave out, and there may be more.

    Args:
        terminals: [N], bool.
        timeouts: [N], bool, or None.
        observations: [N, size].
        next_observations: [N, size] or None.
        max_episode_steps: time limit of the environment, if known.

    Returns:
        [N], bool. The last row may be False: an unfinished episode.

    Raises:
        ValueError: if timeouts, next observations and time limit are all missing, or no timeout
            is set and terminals do not account for all rows, so that the start of an episode
            could pass for the end of another.
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
    stops = np.append(starts[1:], len(ends))
    for start, stop in zip(starts, stops, strict=True):
        ends[start + max_episode_steps - 1 : stop : max_episode_steps] = True
    return ends


def flat_source(
    arrays: Mapping[str, Any],
    name: str,
    *,
    max_episode_steps: int | None = None,
    unknown_terminal_states: UnknownTerminalStates = "hold",
) -> FlatSource:
    """Turn arrays in D4RL's layout into transitions.

    With ``next_observations`` every row is a transition; a terminal row may have NaN there, as one
    of which the next observation is unknown. Without them a row's next observation is the
    following row's observation, except where an episode ends:

    - the last row of a truncated or unfinished episode has no next observation and is left out
      (the row before it is then the episode's last, and marked truncated);
    - a terminal row's next observation is unknown, but neither its reward nor the end may be
      lost (AntMaze has no other rewards): by default its own observation stands in. No value is
      bootstrapped from it.

    Args:
        arrays: ``observations`` [N, *], ``actions`` [N, *], ``rewards`` and ``terminals`` [N] or
            [N, 1], and optionally ``timeouts``, ``next_observations`` and ``timestamps``.
        name: how messages call the data set.
        max_episode_steps: see :func:`episode_ends`.
        unknown_terminal_states: what becomes of terminal rows without a next observation:
            ``"hold"`` repeats their own, ``"drop"`` leaves them out.

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

    observations = as_rows(values["observations"], "observations", name)
    actions = as_rows(values["actions"], "actions", name)
    rewards = as_rows(values["rewards"], "rewards", name)
    terminals = as_flags(values["terminals"], "terminals", name)
    timeouts = None
    if "timeouts" in values:
        timeouts = as_flags(values["timeouts"], "timeouts", name)
    following = None
    if "next_observations" in values:
        if values["next_observations"].shape != values["observations"].shape:
            raise ValueError(
                f"{name}: next_observations of shape {values['next_observations'].shape} must have "
                f"the shape of observations, {values['observations'].shape}"
            )
        named = [names_of(arrays[key]) for key in ("observations", "next_observations")]
        if None not in named and named[0] != named[1]:
            raise ValueError(
                f"{name}: next_observations must have the columns of observations in their order, "
                f"{named[0]}, got {named[1]}"
            )
        following = as_rows(values["next_observations"], "observations", name)
    try:
        ends = episode_ends(
            terminals,
            timeouts,
            observations=observations,
            next_observations=following,
            max_episode_steps=max_episode_steps,
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None

    closed = terminals if timeouts is None else terminals | timeouts
    ends[-1] = True
    truncated = ends & ~terminals
    both = np.zeros_like(terminals) if timeouts is None else terminals & timeouts
    remarks: list[str] = []
    intervals: dict[str, float] = {}
    if "timestamps" in values:
        intervals, remarks = step_intervals(values["timestamps"], ends, name)
    if following is None:
        lost = ends & ~terminals if unknown_terminal_states == "hold" else ends
        remarks += _remarks_without_next(
            ends, lost, terminals, timeouts, max_episode_steps=max_episode_steps
        )
    elif unknown_terminal_states == "drop":
        lost = terminals & ~np.isfinite(following).all(-1)
    else:
        lost = np.zeros_like(ends)
    if (lost & terminals).any():
        remarks.append(
            f"{(lost & terminals).sum()} terminal rows are left out with their rewards, as their "
            'next observations are missing: unknown_terminal_states="hold" keeps them'
        )
    # The row before one that is left out becomes its episode's last.
    truncated[:-1] |= lost[1:] & ~ends[:-1]
    keep = ~lost
    if not keep.any():
        raise ValueError(
            f"{name} is empty without its episodes' last rows, of which no next observation is "
            "known: add next_observations"
        )
    rows = np.flatnonzero(keep)
    if following is None:
        following = observations[rows + ~terminals[rows]]  # a terminal row's own stands in
    columns = (observations, actions, following, rewards, terminals, truncated | both)
    transitions = flat_columns(*(c if len(c) == len(rows) else c[rows] for c in columns))
    episodes = _episodes(values["rewards"].reshape(-1), ends, closed, keep, max_episode_steps)
    return FlatSource(transitions, episodes, (*remarks, *episodes.remarks), intervals)


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
    if max_episode_steps is not None:
        steps = np.diff(np.flatnonzero(ends), prepend=-1)
        too_long = int((steps > max_episode_steps).sum())
        if too_long:
            remarks.append(
                Oddity(
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


def _episodes(
    rewards: np.ndarray, ends: np.ndarray, closed: np.ndarray, keep: np.ndarray, limit: int | None
) -> LoggedEpisodes:
    """Sum the rewards of whole episodes in float64, rows left out included."""
    stops = np.flatnonzero(ends) + 1
    starts = np.concatenate([[0], stops[:-1]])
    whole = find_whole(stops, closed[stops - 1], limit)
    bounds = np.stack([starts, stops], axis=1)[whole]
    returns = np.array([rewards[start:stop].sum(dtype=np.float64) for start, stop in bounds])
    rows = np.concatenate([[0], np.cumsum(keep)])[bounds]
    return LoggedEpisodes(returns, rows[rows[:, 0] < rows[:, 1]], int((~whole).sum()))
