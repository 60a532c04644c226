"""Which logged episodes are whole, and which are pieces that were cut out of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict

__all__ = ["LoggedEpisodes", "episodes_of_transitions", "find_whole", "hold_unknown_ends"]


@dataclass(frozen=True)
class LoggedEpisodes:
    """The episodes of which the return is known.

    An episode is whole if it ends in a terminal, a truncation that is flagged, or at the time
    limit, and the one before it does too. Anything else is a piece, cut at a gap in the rows or
    where a recording stopped: what it would have returned is unknown.

    Attributes:
        returns: undiscounted return of each whole episode, float64.
        rows: int64 [W, 2], the first row of each whole episode in the transitions and the one
            after its last, without episodes of which no row is left.
        num_cut: number of pieces.
    """

    returns: np.ndarray
    rows: np.ndarray
    num_cut: int

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


def find_whole(stops: np.ndarray, closed: np.ndarray, limit: int | None = None) -> np.ndarray:
    """Tell whole episodes from pieces.

    Args:
        stops: [E], the row after each episode's last.
        closed: [E], whether its end is flagged.
        limit: steps after which every episode ends, if known.

    Returns:
        [E], bool.
    """
    if limit is not None:
        closed = closed | (np.diff(stops, prepend=0) >= limit)
    return closed & np.concatenate([[True], closed[:-1]])


def episodes_of_transitions(transitions: TensorDict, limit: int | None = None) -> LoggedEpisodes:
    """Find the episodes between the ends of transitions, before they are scaled.

    Args:
        transitions: canonical transitions [N], rows of an episode following each other: one
            within which a row's next observation is not the next row's is a piece.
        limit: see :func:`find_whole`.
    """
    done = transitions["next", "done"].squeeze(-1).numpy()
    stops = np.flatnonzero(done) + 1
    if len(stops) == 0 or stops[-1] != len(done):
        stops = np.append(stops, len(done))
    starts = np.concatenate([[0], stops[:-1]])
    whole = find_whole(stops, done[stops - 1], limit)
    following = transitions["next", "observation"][:-1] != transitions["observation"][1:]
    gaps = np.flatnonzero(following.any(-1).numpy() & ~done[:-1])
    whole[np.searchsorted(stops, gaps, side="right")] = False
    reward = transitions["next", "reward"].squeeze(-1).double().numpy()
    returns = np.add.reduceat(reward, starts)[whole]
    rows = np.stack([starts, stops], axis=1)[whole]
    return LoggedEpisodes(returns, rows, int((~whole).sum()))


def hold_unknown_ends(transitions: TensorDict) -> tuple[str, ...]:
    """Let a terminal row's own observation stand in where its next one is not finite, in place.

    Neither its reward nor its end may be lost, and no value is bootstrapped from it.

    Returns:
        One sentence, or nothing.
    """
    following = transitions["next", "observation"]
    rows = transitions["next", "terminated"].squeeze(-1).nonzero().flatten()
    rows = rows[~torch.isfinite(following[rows]).all(-1)]
    if not len(rows):
        return ()
    following[rows] = transitions["observation"][rows]
    return (
        f"{len(rows)} terminal rows have no next observation, so their own stands in: the "
        "model is off by one step there",
    )
