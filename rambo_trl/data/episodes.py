"""Whole episodes to flat transitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from minari import EpisodeData
from minari.data_collector import EpisodeBuffer
from tensordict import TensorDict

from rambo_trl.data.checks import Oddity
from rambo_trl.data.pieces import LoggedEpisodes, find_whole
from rambo_trl.data.spaces import as_flags, as_rows

__all__ = ["Episode", "flat_columns", "flatten_episodes"]

_EPISODE_FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")


#: an episode in Minari's layout
Episode: TypeAlias = Mapping[str, Any] | EpisodeData | EpisodeBuffer


def flatten_episodes(
    episodes: Iterable[Episode], name: str, *, max_episode_steps: int | None = None
) -> tuple[TensorDict, LoggedEpisodes, tuple[str, ...]]:
    """Join episodes in Minari's layout.

    Args:
        episodes: mappings, or Minari's objects, with ``observations`` [T + 1, *], ``actions``
            [T, *], ``rewards``, ``terminations`` and ``truncations`` [T]. An episode whose last
            row has no end flag was cut there: the row is truncated, and the episode is a piece
            unless it lasted as long as the time limit; one without a step is passed over.
        name: how messages call the data set.
        max_episode_steps: the time limit, if known.

    Returns:
        Transitions [N]; the whole episodes; and remarks on pieces and, as an :class:`Oddity`, on
        episodes that go on after an end flag.

    Raises:
        ValueError: if there is no step at all, arrays are missing, differ in length or shape, or
            flags are neither 0 nor 1.
    """
    columns = tuple(_Column() for _ in range(6))
    returns, lengths, closed = [], [], []
    going_on: list[tuple[int, int]] = []  # an episode and the step of its first end flag
    for index, given in enumerate(episodes):
        episode = _fields(given, f"{name}: episode {index}")
        observations, actions, rewards, terminations, truncations = _episode_arrays(
            episode, f"{name}: episode {index}"
        )
        if len(rewards) == 0:
            continue
        # Summed in the source's own precision, before rewards become float32.
        returns.append(float(np.sum(episode["rewards"], dtype=np.float64)))
        lengths.append(len(rewards))
        closed.append(bool(terminations[-1] | truncations[-1]))
        truncations = truncations.copy()
        truncations[-1] |= not terminations[-1]
        early = np.flatnonzero((terminations | truncations)[:-1])
        if len(early):
            going_on.append((index, int(early[0])))
        rows = (observations[:-1], actions, observations[1:], rewards, terminations, truncations)
        for column, value in zip(columns, rows, strict=True):
            try:
                column.append(value)
            except ValueError as error:
                raise ValueError(
                    f"{name}: episode {index}'s arrays differ in shape from those before: {error}"
                ) from None
    if not returns:
        raise ValueError(f"{name} is empty: give at least one episode with one step")
    remarks = tuple(
        Oddity(
            f"{len(going_on)} episodes go on after an end flag, the first is episode {index} after "
            f"step {step}, both counted from 0: split them there, or clear flags that end nothing"
        )
        for index, step in going_on[:1]
    )
    transitions = flat_columns(*(column.finish() for column in columns))
    stops = np.cumsum(lengths)
    whole = find_whole(stops, np.array(closed), max_episode_steps)
    bounds = np.stack([stops - lengths, stops], axis=1)[whole]
    found = LoggedEpisodes(np.array(returns)[whole], bounds, int((~whole).sum()))
    return transitions, found, (*remarks, *found.remarks)


def _fields(episode: Episode, where: str) -> Mapping[str, Any]:
    """An episode's arrays by name."""
    if isinstance(episode, EpisodeData | EpisodeBuffer):
        return vars(episode)
    if not isinstance(episode, Mapping):
        raise TypeError(
            f"{where} is of type {type(episode).__name__}: give mappings of arrays, or Minari's "
            "EpisodeData or EpisodeBuffer"
        )
    return episode


class _Column:
    """Rows [N, *] that grow in place, so that episodes are joined without a second copy."""

    def __init__(self) -> None:
        self._rows = np.empty(0)
        self._length = 0

    def append(self, rows: np.ndarray) -> None:
        """Copy rows [T, *] behind those before.

        Raises:
            ValueError: if they have another shape.
        """
        if self._length == 0:
            self._rows = np.empty((0, *rows.shape[1:]), rows.dtype)
        elif rows.shape[1:] != self._rows.shape[1:]:
            raise ValueError(f"rows of shape {rows.shape[1:]} after {self._rows.shape[1:]}")
        length = self._length + len(rows)
        if length > len(self._rows):
            # memory that is not written to yet costs nothing, and growing moves pages, not bytes
            self._resize(max(length, 2 * len(self._rows)))
        self._rows[self._length : length] = rows
        self._length = length

    def finish(self) -> np.ndarray:
        """Give up the room that is left and return the rows."""
        self._resize(self._length)
        return self._rows

    def _resize(self, length: int) -> None:
        self._rows.resize((length, *self._rows.shape[1:]), refcheck=False)


def flat_columns(
    observation: np.ndarray,
    action: np.ndarray,
    next_observation: np.ndarray,
    reward: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
) -> TensorDict:
    """Lay out columns of N rows as transitions, without copying."""
    return TensorDict(
        {
            "observation": torch.from_numpy(observation),
            "action": torch.from_numpy(action),
            "next": {
                "observation": torch.from_numpy(next_observation),
                "reward": torch.from_numpy(reward),
                "terminated": torch.from_numpy(terminated),
                "truncated": torch.from_numpy(truncated),
            },
        },
        batch_size=[len(reward)],
    )


def _episode_arrays(episode: Mapping[str, Any], where: str) -> tuple[np.ndarray, ...]:
    """Read an episode's five arrays as float32 and bool, their lengths checked."""
    missing = [field for field in _EPISODE_FIELDS if field not in episode]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}: each of {_EPISODE_FIELDS} is needed")
    observations, actions, rewards = (
        as_rows(episode[kind], kind, where) for kind in _EPISODE_FIELDS[:3]
    )
    terminations, truncations = (
        as_flags(episode[kind], kind, where) for kind in _EPISODE_FIELDS[3:]
    )
    values = (observations, actions, rewards, terminations, truncations)
    lengths = {field: len(value) for field, value in zip(_EPISODE_FIELDS, values, strict=True)}
    steps = lengths["rewards"]
    if lengths["observations"] != steps + 1 or any(
        lengths[field] != steps for field in _EPISODE_FIELDS[1:]
    ):
        raise ValueError(
            f"{where} has arrays of lengths {lengths}: T + 1 observations and T of each other "
            "are needed"
        )
    return values
