"""From episodes to flat transitions, and which logged episodes are whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from minari import EpisodeData
from minari.data_collector import EpisodeBuffer
from tensordict import TensorDict

from rambo_trl.data.checks import DataWarning
from rambo_trl.data.spaces import as_flags, as_rows

__all__ = [
    "Episode",
    "LoggedEpisodes",
    "episodes_of_transitions",
    "flat_columns",
    "flatten_episodes",
    "hold_unknown_ends",
]

_EPISODE_FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")


#: an episode in Minari's layout
Episode: TypeAlias = Mapping[str, Any] | EpisodeData | EpisodeBuffer


def flatten_episodes(
    episodes: Iterable[Episode], name: str, *, max_episode_steps: int | None = None
) -> tuple[TensorDict, LoggedEpisodes, tuple[str, ...]]:
    """Join episodes in Minari's layout.

    An episode whose last row has no end flag was cut there: the row is truncated, and the episode
    is a piece unless it lasted as long as the time limit. One without a step is passed over.

    Args:
        episodes: mappings, or Minari's objects, with ``observations`` [T + 1, *], ``actions`` [T,
            *], ``rewards``, ``terminations`` and ``truncations`` [T]. An entry ``is_piece`` says
            whether an episode is a cut piece; where it is missing, the end flags do.
        name: how messages call the data set.
        max_episode_steps: the time limit, if known.

    Returns:
        Transitions [N]; the whole episodes; and remarks on pieces and, as a :class:`DataWarning`,
        on episodes that continue after an end flag.

    Raises:
        ValueError: if there is no step at all, arrays are missing, differ in length or shape, or
            flags are neither 0 nor 1.
    """
    columns: list[list[np.ndarray]] = [[] for _ in range(6)]
    returns, lengths = [], []
    closed: list[bool] = []
    pieces: list[int] = []
    continuing: list[tuple[int, int]] = []  # an episode and the step of its first end flag
    for index, given in enumerate(episodes):
        where = f"{name}: episode {index}"
        episode = _fields(given, where)
        observations, actions, rewards, terminations, truncations = _episode_arrays(episode, where)
        if len(rewards) == 0:
            continue
        # Summed in the source's own precision, before rewards become float32.
        returns.append(float(np.sum(episode["rewards"], dtype=np.float64)))
        lengths.append(len(rewards))
        if episode.get("is_piece", False):
            pieces.append(len(closed))
        # where pieces are named, an open end says nothing of the next episode
        closed.append("is_piece" in episode or bool(terminations[-1] | truncations[-1]))
        truncations = truncations.copy()
        truncations[-1] |= not terminations[-1]
        early = np.flatnonzero((terminations | truncations)[:-1])
        if len(early):
            continuing.append((index, int(early[0])))
        rows = (observations[:-1], actions, observations[1:], rewards, terminations, truncations)
        for column, values in zip(columns, rows, strict=True):
            if column and values.shape[1:] != column[0].shape[1:]:
                raise ValueError(
                    f"{where}'s arrays differ in shape from those before: rows of shape "
                    f"{values.shape[1:]} after {column[0].shape[1:]}"
                )
            column.append(values)
    if not returns:
        raise ValueError(f"{name} is empty: give at least one episode with one step")
    remarks = tuple(
        DataWarning(
            f"{len(continuing)} episodes continue after an end flag, the first is episode {index} "
            f"after step {step}, both counted from 0: split them there, or clear flags that end "
            "nothing"
        )
        for index, step in continuing[:1]
    )
    # column by column, so that no more than one is in memory twice
    transitions = flat_columns(*(np.concatenate(columns.pop(0)) for _ in range(6)))
    logged = LoggedEpisodes.of(
        np.array(returns),
        np.cumsum(lengths),
        np.array(closed),
        max_episode_steps,
        np.array(pieces, dtype=np.int64),
    )
    return transitions, logged, (*remarks, *logged.remarks)


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


#: the columns of transitions, in the order of :func:`flat_columns`
_KEYS = (
    "observation", "action", ("next", "observation"), ("next", "reward"), ("next", "terminated"),
    ("next", "truncated"),
)  # fmt: skip


def flat_columns(*columns: np.ndarray) -> TensorDict:
    """Lay out columns of N rows as transitions, without copying."""
    transitions = TensorDict(batch_size=[len(columns[0])])
    for key, column in zip(_KEYS, columns, strict=True):
        transitions[key] = torch.from_numpy(column)
    return transitions


def _episode_arrays(episode: Mapping[str, Any], where: str) -> tuple[np.ndarray, ...]:
    """Read an episode's five arrays as float32 and bool, their lengths checked."""
    missing = [field for field in _EPISODE_FIELDS if field not in episode]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}: each of {_EPISODE_FIELDS} is needed")
    values = (
        *(as_rows(episode[field], field, where) for field in _EPISODE_FIELDS[:3]),
        *(as_flags(episode[field], field, where) for field in _EPISODE_FIELDS[3:]),
    )
    lengths = {field: len(value) for field, value in zip(_EPISODE_FIELDS, values, strict=True)}
    steps = lengths["rewards"]
    if list(lengths.values()) != [steps + 1, *[steps] * 4]:
        raise ValueError(
            f"{where} has arrays of lengths {lengths}: T + 1 observations and T of each other "
            "are needed"
        )
    return values


@dataclass(frozen=True)
class LoggedEpisodes:
    """The episodes of which the return is known.

    An episode is whole if its end and that of the one before it are a terminal, a flagged
    truncation or at the time limit. Anything else is a piece, cut at a gap in the rows or where a
    recording
    stopped: what it would have returned is unknown.

    Attributes:
        returns: undiscounted return of each whole episode, float64.
        rows: int64 [W, 2], the first row of each whole episode in the transitions and the one
            after its last, without episodes of which no row is left.
        num_cut: number of pieces.
    """

    returns: np.ndarray
    rows: np.ndarray
    num_cut: int

    @classmethod
    def of(
        cls,
        returns: np.ndarray,
        stops: np.ndarray,
        closed: np.ndarray,
        limit: int | None = None,
        gaps: np.ndarray | None = None,
    ) -> LoggedEpisodes:
        """Tell whole episodes from pieces.

        Args:
            returns: [E], of each episode.
            stops: [E], the row after each episode's last.
            closed: [E], whether its end is flagged.
            limit: steps after which every episode ends, if known.
            gaps: numbers of episodes that are pieces anyway.
        """
        starts = np.concatenate([[0], stops[:-1]])
        if limit is not None:
            closed = closed | (stops - starts >= limit)
        whole = closed & np.concatenate([[True], closed[:-1]])
        if gaps is not None:
            whole[gaps] = False
        return cls(returns[whole], np.stack([starts, stops], axis=1)[whole], int((~whole).sum()))

    @property
    def remarks(self) -> tuple[str, ...]:
        """One sentence where there are pieces, else nothing."""
        if not self.num_cut:
            return ()
        whole = len(self.returns)
        left = f"returns are those of the other {whole}" if whole else "no return is known"
        return (
            f"{self.num_cut} of {self.num_cut + whole} episodes are cut pieces (rows or the flag "
            "are missing at their end, or at that of the episode before), so "
            f"{left}: flag the ends of whole episodes, or give max_episode_steps=; a terminal row "
            "whose next observation is missing may stay, with NaN there",
        )


def episodes_of_transitions(transitions: TensorDict, limit: int | None = None) -> LoggedEpisodes:
    """Find the episodes between the ends of transitions [N], before they are scaled.

    One within which a row's next observation is not the next row's observation is a piece.
    """
    done = transitions["next", "done"].squeeze(-1).numpy()
    stops = np.flatnonzero(done) + 1
    if len(stops) == 0 or stops[-1] != len(done):
        stops = np.append(stops, len(done))
    differs = transitions["next", "observation"][:-1] != transitions["observation"][1:]
    gaps = np.flatnonzero(differs.any(-1).numpy() & ~done[:-1])
    reward = transitions["next", "reward"].squeeze(-1).double().numpy()
    returns = np.add.reduceat(reward, np.concatenate([[0], stops[:-1]]))
    pieces = np.searchsorted(stops, gaps, side="right")
    return LoggedEpisodes.of(returns, stops, done[stops - 1], limit, pieces)


def hold_unknown_ends(transitions: TensorDict) -> tuple[str, ...]:
    """Let a terminal row's own observation stand in where its next one is not finite, in place.

    Neither its reward nor its end may be lost, and no value is bootstrapped from it.

    Returns:
        One sentence, or nothing.
    """
    next_observation = transitions["next", "observation"]
    rows = transitions["next", "terminated"].squeeze(-1).nonzero().flatten()
    rows = rows[~torch.isfinite(next_observation[rows]).all(-1)]
    if not len(rows):
        return ()
    next_observation[rows] = transitions["observation"][rows]
    return (
        f"{len(rows)} terminal rows have no next observation, so their own stands in: the "
        "model is off by one step there",
    )
