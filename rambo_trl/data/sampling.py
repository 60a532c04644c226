"""Whether the steps of a log took equally long."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import numpy as np

from rambo_trl.data.checks import Oddity

__all__ = ["step_intervals"]

#: an interval that differs from the median by more than this share of it is irregular, and more
#: than this share of such intervals is told
_DEVIATION, _MAY_DEVIATE = 0.1, 0.01
#: an interval so many times the median is a gap
_GAP = 10


def step_intervals(
    timestamps: Any, ends: np.ndarray, where: str
) -> tuple[dict[str, float], list[str]]:
    """Measure the time from each row to the following one of the same episode.

    Args:
        timestamps: [N] or [N, 1], numbers in any unit, or dates (as text in ISO 8601), which are
            taken in seconds.
        ends: [N], bool: rows after which an episode ends.
        where: the start of messages.

    Returns:
        Mean, std, min, median and max of the intervals by these names (empty where no episode has
        two rows), and what is odd about them: sentences.

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
    measured = {
        "mean": float(steps.mean()),
        "std": float(steps.std()),
        "min": float(steps.min()),
        "median": middle,
        "max": float(steps.max()),
    }
    remarks: list[str] = []
    backwards = int((steps <= 0).sum())
    if backwards:
        remarks.append(
            Oddity(
                f"time stands still or goes back at {backwards} steps within episodes: sort the "
                "rows of each episode by time, and drop rows that are there twice"
            )
        )
    gaps = int((steps > _GAP * middle).sum())
    if gaps:
        remarks.append(
            Oddity(
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
