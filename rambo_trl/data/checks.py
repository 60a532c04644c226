"""What may be a mistake in a data set, and irregular time steps."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensordict import TensorDict, TensorDictBase

from rambo_trl.data.columns import listed

__all__ = [
    "DataWarning",
    "constants",
    "data_warnings",
    "duplicate_episodes",
    "ends_of_both_kinds",
    "step_intervals",
]

#: an interval that differs from the median by more than this share of it is irregular, and more
#: than this share of such intervals is told
_DEVIATION, _MAY_DEVIATE = 0.1, 0.01
#: an interval so many times the median is a gap
_GAP = 10


class DataWarning(str):
    """A remark on what may be a mistake in the data."""


def data_warnings(transitions: TensorDict) -> list[str]:
    """Warn of rewards that are all equal, episodes of one row only, and repeated episodes.

    Args:
        transitions: canonical transitions [N], rows of an episode following each other.
    """
    remarks = []
    reward = transitions["next", "reward"]
    low, high = float(reward.min()), float(reward.max())
    if low == high and len(reward) > 1:
        remarks.append(
            f"all {len(reward)} rewards are {low:g}: only the length of episodes can tell good "
            "actions from bad, so check the rewards if that is not meant"
        )
    done = transitions["next", "done"].squeeze(-1)
    terminated = transitions["next", "terminated"].squeeze(-1)
    if len(done) > 1 and bool(done.all()) and not bool(terminated.all()):
        remarks.append(
            f"all {len(done)} episodes have one row: if the rows were shuffled, returns and "
            "scores of the data mean nothing, so keep the rows of an episode together"
        )
    duplicates = duplicate_episodes(transitions)
    if duplicates:
        remarks.append(
            f"{len(duplicates)} episodes repeat an earlier one row for row, the first is episode "
            f"{duplicates[0]}: drop them unless they are meant to weigh more"
        )
    return remarks


def constants(
    transitions: TensorDict, observation_names: Sequence[str], action_names: Sequence[str]
) -> list[str]:
    """Remark on entries that never change; at most one sentence for each kind."""
    remarks = []
    for rows, names, told in (
        (
            transitions["observation"],
            observation_names,
            "what a change of it does is not in the data, so leave an entry out that may change "
            "where the policy is used",
        ),
        (
            transitions["action"],
            action_names,
            "what this action does is not in the data, so give it a fixed value where the policy "
            "is used, and leave it out here",
        ),
    ):
        low, high = rows.amin(0).tolist(), rows.amax(0).tolist()
        still = [f"{n} is {a:g}" for n, a, b in zip(names, low, high, strict=True) if a == b]
        if still and len(rows) > 1:
            remarks.append(f"{listed(still)} in all rows: {told}")
    return remarks


def ends_of_both_kinds(transitions: TensorDictBase) -> list[str]:
    """Tell of rows that are terminated and truncated at once; one sentence or none."""
    truncated = transitions.get(("next", "truncated"), None)
    if truncated is None:
        return []
    count = int((truncated.reshape(-1) * transitions["next", "terminated"].reshape(-1)).sum())
    if not count:
        return []
    return [
        f"{count} rows are terminal and timed out at once and count as terminal, so nothing is "
        "bootstrapped from them: clear their terminal flags if only the time limit ended them"
    ]


def duplicate_episodes(transitions: TensorDict) -> list[int]:
    """Return the indices of episodes whose observations, actions and rewards occurred before."""
    stops = transitions["next", "done"].squeeze(-1).numpy().nonzero()[0] + 1
    columns = [
        np.ascontiguousarray(transitions[key].numpy())
        for key in ("observation", "action", ("next", "reward"))
    ]
    seen: set[bytes] = set()
    repeats: list[int] = []
    bounds = zip([0, *stops], [*stops, len(transitions)], strict=True)
    for index, (start, stop) in enumerate(bounds):
        if start == stop:
            continue  # nothing after the last end
        digest = hashlib.blake2b(b"".join(c[start:stop].data for c in columns)).digest()
        if digest in seen:
            repeats.append(index)
        seen.add(digest)
    return repeats


def step_intervals(
    timestamps: Any, ends: np.ndarray, where: str
) -> tuple[dict[str, float], list[str]]:
    """Measure the time from each row to the next one of the same episode.

    Args:
        timestamps: [N] or [N, 1], numbers in any unit, or dates (as text in ISO 8601), in seconds.
        ends: [N], bool: rows after which an episode ends.
        where: the start of messages.

    Returns:
        Mean, std, min, median and max of the intervals (empty where no episode has two rows), and
        remarks on irregular ones.

    Raises:
        ValueError: if these are no times, or one is missing.
    """
    times = np.asarray(timestamps).reshape(-1)
    for dtype in ("f8", "M8[us]"):  # numbers or dates as objects or text
        if times.dtype.kind in "OUS":
            with contextlib.suppress(ValueError, TypeError), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of time zones: all become UTC
                times = times.astype(dtype)
    if times.dtype.kind == "M":
        times = (times - times[0]) / np.timedelta64(1, "s")  # NaT becomes NaN
    if times.dtype.kind not in "fiu" or len(times) != len(ends):
        raise ValueError(
            f"{where}: timestamps must be one number or date a row, got type {times.dtype} of "
            f"shape {np.shape(timestamps)}"
        )
    missing = np.flatnonzero(~np.isfinite(times))
    if len(missing):
        raise ValueError(
            f"{where}: {len(missing)} timestamps are missing, the first in row {missing[0]}: fill "
            "them in, or leave all of them out"
        )
    steps = np.diff(times.astype(np.float64))[~ends[:-1]]
    if len(steps) == 0:
        return {}, []
    middle = float(np.median(steps))
    numbers = (steps.mean(), steps.std(), steps.min(), middle, steps.max())
    names = ("mean", "std", "min", "median", "max")
    measured = dict(zip(names, map(float, numbers), strict=True))
    remarks: list[str] = []
    backwards = int((steps <= 0).sum())
    if backwards:
        remarks.append(
            DataWarning(
                f"time stands still or goes back at {backwards} steps within episodes: sort the "
                "rows of each episode by time, and drop rows that are there twice"
            )
        )
    gaps = int((steps > _GAP * middle).sum())
    if gaps:
        remarks.append(
            DataWarning(
                f"{gaps} steps within episodes take more than {_GAP} times the median of "
                f"{middle:g}, the longest {measured['max']:g}: rows are missing there, or an "
                "episode's end has no flag, and they pass for steps; end episodes there"
            )
        )
    share = float((np.abs(steps - middle) > _DEVIATION * abs(middle)).mean())
    if share > _MAY_DEVIATE:
        low, high = np.quantile(steps, (0.01, 0.99))
        remarks.append(
            f"steps are irregular: {100 * share:.1f} % of them differ by more than "
            f"{100 * _DEVIATION:.0f} % from the median of {middle:g} (1 to 99 %: {low:g} to "
            f"{high:g}, longest {measured['max']:g}), and the model takes all for the same: "
            "resample them, and end episodes at gaps"
        )
    return measured, remarks
