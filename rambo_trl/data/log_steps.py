"""From the rows of a log to episodes: steps between neighbours, cut where one is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Side", "Steps", "cut_steps"]

#: of a step: the row that it starts from, or the one that it leads to
Side = Literal["from", "to"]


@dataclass(frozen=True)
class Steps:
    """The steps of a log that can be learnt from.

    Attributes:
        rows: int64 [N], the rows that they start from, ascending; each leads to the next row.
        terminated: bool [N].
        truncated: bool [N]; the last step of a whole episode, not that of a cut piece.
        first: int64 [E], the places in ``rows`` of the first steps of episodes and pieces.
        whole: bool [E], which of these are episodes from their first row to their last.
        unknown_end: bool [N], terminal steps of which the row that they lead to is unknown.
        possible: how many steps the rows have, between neighbours within an episode.
        lost: reasons why steps are left out, with their number, the first reason that holds.
        lost_ends: how many ends of episodes no step leads to.
    """

    rows: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    first: np.ndarray
    whole: np.ndarray
    unknown_end: np.ndarray
    possible: int
    lost: dict[str, int]
    lost_ends: int


def cut_steps(
    starts: np.ndarray,
    group: np.ndarray,
    *,
    read: np.ndarray,
    acted: np.ndarray,
    rewarded: np.ndarray,
    terminal: np.ndarray,
    truncated: np.ndarray | None,
    end_in: Side,
    bounded: bool,
) -> Steps:
    """Find the steps, and where episodes begin and end.

    A step leads from a row to the next one of its episode. It is left out if an observation, the
    action, the reward or a flag is missing, and the episode is cut there. The step that ends an
    episode by itself needs no observation of the row that it leads to.

    Args:
        starts: bool [N], rows that do not follow the one before.
        group: int64 [N], the episode of each row.
        read: bool [N], rows with the whole observation.
        acted: bool [N], rows whose step has its action.
        rewarded: bool [N], rows whose step has its reward.
        terminal: [N], 1 where an episode ended by itself, else 0; NaN where it is unknown.
        truncated: [N], likewise where it was cut off; the last row of a group where None.
        end_in: the row of a step in which these two stand.
        bounded: whether a group's first and last rows are those of an episode.
    """
    count = len(starts)
    follows = np.append(~starts[1:], False)  # a row has a next one
    last = np.append(np.diff(group) != 0, True)
    group_before = np.append(-1, group[:-1])
    after = np.minimum(np.arange(count) + 1, count - 1)
    cut_off = np.zeros(count) if truncated is None else truncated
    ends = (terminal == 1) | (cut_off == 1)
    unknown = np.isnan(terminal) | np.isnan(cut_off)
    if end_in == "to":
        done, dead, flagged = (terminal == 1)[after], (cut_off == 1)[after], ~unknown[after]
        over = ends
    else:
        done, dead, flagged = terminal == 1, cut_off == 1, ~unknown
        over = np.append(False, ends[:-1]) & ~starts
    if truncated is None and bounded:
        # unless the last row has a step of its own, whose end is not known
        dead = dead | (follows & last[after] & ~(done[after] & (end_in == "from")))
    done = done & (follows | (end_in == "from"))
    dead &= ~done
    led = (follows & read[after]) | done
    reasons = {
        "after the end of their episode": over,
        "without a whole observation": ~read | ~led,
        "without an action": ~acted,
        "without a reward": ~rewarded,
        "without a flag": ~flagged,
    }
    candidates = follows | done
    lost: dict[str, int] = {}
    ok = candidates.copy()
    for reason, bad in reasons.items():
        lost[reason] = int((ok & bad).sum())
        ok &= ~bad
    rows = np.flatnonzero(ok)
    finished = done | dead
    fresh = np.append(True, ~ok[:-1] | finished[:-1]) | starts
    first = np.flatnonzero(fresh[rows])
    begins = np.append(True, np.diff(group) != 0) & bounded
    # after an end the next row that is not over begins an episode
    begins |= np.append(False, over[:-1]) & ~starts & ~over
    stop = np.append(first[1:], len(rows)) - 1
    whole = begins[rows[first]] & finished[rows[stop]] if len(rows) else np.zeros(0, bool)
    flags = dead[rows].copy()
    if len(rows):
        flags[stop[~whole]] = False
    before = np.append(0.0, terminal[:-1])
    again = over if end_in == "from" else (before == 1) & (group_before == group)
    came = (terminal == 1) & ~again
    return Steps(
        rows=rows,
        terminated=done[rows],
        truncated=flags,
        first=first,
        whole=whole,
        unknown_end=done[rows] & ~(follows & read[after])[rows],
        possible=int(candidates.sum()),
        lost={reason: n for reason, n in lost.items() if n},
        lost_ends=int(came.sum() - done[rows].sum()),
    )
