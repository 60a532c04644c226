"""Named entries: tables of a log as arrays, their names, and the range of each entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor

__all__ = [
    "DataDescription",
    "as_numbers",
    "entry_names",
    "listed",
    "names_of",
    "told_apart",
    "where_missing",
]

_SHOWN = 5  # entries or values that a message names
#: of the range of an entry, so much beyond it is far outside; of a constant one's value, or 1
_FAR, _FAR_FROM_CONSTANT = 0.5, 1e-3


def names_of(value: Any) -> tuple[str, ...] | None:
    """The column names of a table; None for anything else.

    A table is a mapping of columns, a data frame (pandas, polars), an Arrow table, or a structured
    NumPy array such as ``numpy.genfromtxt`` with ``names=True`` gives.
    """
    keys = _keys(value)
    return None if keys is None else tuple(map(str, keys))


def _keys(value: Any) -> list[Any] | None:
    """What a table's columns are asked for by."""
    if isinstance(value, np.ndarray):
        return None if value.dtype.names is None else list(value.dtype.names)
    if isinstance(value, Mapping):
        return list(value)
    for attribute in ("column_names", "columns"):  # Arrow's, the data frames'
        if hasattr(value, attribute):
            return list(getattr(value, attribute))
    return None


def as_numbers(value: Any, kind: str, where: str) -> np.ndarray:
    """Read an array, or the columns of a table as [N, columns]; what is missing becomes NaN.

    Args:
        value: anything that NumPy reads as one array, or a table (:func:`names_of`).
        kind: what messages call the values.
        where: the start of messages.

    Raises:
        ValueError: if there is text, a date or anything else that is no number.
    """
    keys = _keys(value)
    if keys is None:
        return _numbers(value, kind, where)
    if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
        raise ValueError(f"{where}: {kind} have several columns named {twice}: give each its own")
    columns = {key: _numbers(value[key], f"column {key!r} of {kind}", where) for key in keys}
    shapes = {key: column.shape for key, column in columns.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 1:
        raise ValueError(
            f"{where}: {kind} must be one array of numbers, or columns of one number a step and of "
            f"one length, got {shapes}"
        )
    return np.stack(list(columns.values()), axis=1)


def _numbers(value: Any, label: str, where: str) -> np.ndarray:
    """Read one array; empty cells, as None or masked, become NaN."""
    try:
        array = value if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{where}: {label} are no regular array ({error})") from None
    if isinstance(array, np.ma.MaskedArray):
        missing = np.ma.getmaskarray(array)
        array = np.where(missing, np.nan, array.data) if missing.any() else array.data
    if array.dtype.kind in "fiub":
        return array
    cells = array.ravel().tolist()
    if array.dtype.kind == "O":
        # None, or pandas' NA and NaT
        empty = [x is None or type(x).__name__ in ("NAType", "NaTType") for x in cells]
        numeric = (bool, int, float, np.number, np.bool_)
        wrong = [x for x, e in zip(cells, empty, strict=True) if not (e or isinstance(x, numeric))]
        if not wrong:
            values = [np.nan if e else x for x, e in zip(cells, empty, strict=True)]
            return np.array(values, np.float64).reshape(array.shape)
        cells = wrong
    some = ", ".join(repr(str(cell)) for cell in dict.fromkeys(cells[:1000]))
    some = some if len(some) <= 60 else some[:57] + "..."
    raise ValueError(
        f"{where}: {label} of type {array.dtype} are no real numbers but {some}: give numbers "
        "(with a decimal point; dates as seconds since a start; 0 and 1 in a column for each "
        "kind), or leave the column out"
    )


def told_apart(*values: float, digits: int = 6) -> list[str]:
    """Numbers as text, with ``digits`` significant ones or as many as tell them apart."""

    def text(count: int) -> list[str]:
        return [f"{x:.{count}g}" for x in values]

    if len(set(text(digits))) < len(set(values)):
        digits = max(digits, *(len(f"{abs(x):.0f}") for x in values))  # without an exponent
    while digits < 17 and len(set(text(digits))) < len(set(values)):
        digits += 1
    return text(digits)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def entry_names(names: Sequence[str] | None, size: int, kind: str, where: str) -> tuple[str, ...]:
    """One name for each entry: those given, or ``"observation 0"`` and so on.

    Raises:
        ValueError: if there are not as many names as entries, or they are no distinct strings.
    """
    if names is None:
        return tuple(f"{kind} {i}" for i in range(size))
    if isinstance(names, str) or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError(f"{where}: {kind}_names must be a sequence of names, got {names!r}")
    names = tuple(str(name) for name in names)
    if len(names) != size or len(set(names)) != size:
        raise ValueError(
            f"{where}: {kind}_names must be {size} different names, one an entry, got {names}"
        )
    return names


def listed(names: Sequence[str]) -> str:
    """Some names as text, the first few and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def where_missing(bad: np.ndarray, names: Sequence[str]) -> str:
    """Name the entries [N, size] that are not finite, as the end of a sentence.

    Those that never are may be text that was read as numbers; nothing is said without names.
    """
    if not names:
        return ""
    some, every = (
        listed([names[i] for i in test.nonzero()[0].tolist()]) for test in (bad.any(0), bad.all(0))
    )
    return f" of {some}" + (f", where {every} has no number at all (was it text?)" if every else "")


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class DataDescription:
    """What the data's entries are called, and what they cover, in the data's own units.

    What is not known is None, as in the files of older versions.

    Args:
        observation_names: of the observation entries.
        action_names: of the action entries.
        observation_low: the least value of each observation entry.
        observation_high: the largest.
        observation_p01: the value that one in a hundred is below.
        observation_p99: the value that one in a hundred is above.
        logged_action_low: the least value of each action entry; the bounds may reach further.
        logged_action_high: the largest.
        logged_action_change: the largest change of each action entry from a step to the next one.
        distance_centre: the mean of the observations, from which distances are measured.
        distance_matrix: M in the distance ``|M (x - centre)|``, which is Mahalanobis's with the
            data's covariance. An entry that is constant counts for nothing.
        distance_limit: the distance beyond which an observation is far outside.
        step_interval: the median time from a step to the next one, in the time stamps' unit
            (seconds for dates).

    Raises:
        ValueError: if numbers are not finite or not as many as the names.

    Examples:
        >>> data = DataDescription(("temp_C",), ("power_W",), (20.0,), (75.0,))
        >>> data.as_header()["action_names"]
        ['power_W']
        >>> data.far_limits
        ((-7.5,), (102.5,))
    """

    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    observation_low: tuple[float, ...] | None = None
    observation_high: tuple[float, ...] | None = None
    observation_p01: tuple[float, ...] | None = None
    observation_p99: tuple[float, ...] | None = None
    logged_action_low: tuple[float, ...] | None = None
    logged_action_high: tuple[float, ...] | None = None
    logged_action_change: tuple[float, ...] | None = None
    distance_centre: tuple[float, ...] | None = None
    distance_matrix: tuple[tuple[float, ...], ...] | None = None
    distance_limit: float | None = None
    step_interval: float | None = None

    def __post_init__(self) -> None:
        sizes: dict[str, tuple[int, ...]] = {
            "observation": (len(self.observation_names),),
            "logged_action": (len(self.action_names),),
            "distance_centre": (len(self.observation_names),),
            "distance_matrix": (len(self.observation_names),) * 2,
            "distance_limit": (),
            "step_interval": (),
        }
        for key, value in self._numbers().items():
            shape = next(size for start, size in sizes.items() if key.startswith(start))
            try:
                numbers = np.array(value, np.float64)
            except (TypeError, ValueError):
                numbers = np.array(np.nan)
            if numbers.shape != shape or not np.isfinite(numbers).all():
                what = "one an entry" if shape else "one"
                raise ValueError(f"{key} of the data must be finite numbers, {what}: {value}")

    def _numbers(self) -> dict[str, Any]:
        """What is known beside the names."""
        return {k: v for k, v in vars(self).items() if v is not None and not k.endswith("_names")}

    @classmethod
    def of_header(cls, header: Mapping[str, Any], sizes: tuple[int, int]) -> DataDescription:
        """Read what :meth:`as_header` wrote.

        Args:
            header: with names and, optionally, the numbers.
            sizes: number of observation and of action entries.

        Raises:
            ValueError: if the names are not as many, or the numbers do not fit them.
        """
        observations, actions = (
            entry_names(header.get(f"{kind}_names"), size, kind, "the file")
            for kind, size in zip(("observation", "action"), sizes, strict=True)
        )
        known = {f.name: header.get(f.name) for f in fields(cls) if not f.name.endswith("_names")}
        return cls(observations, actions, **{key: _tuples(value) for key, value in known.items()})

    def as_header(self) -> dict[str, Any]:
        """What is written into a file, as JSON has it."""
        names = {
            "observation_names": list(self.observation_names),
            "action_names": list(self.action_names),
        }
        return names | self._numbers()

    @property
    def far_limits(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """The values [obs] below and above which an entry is far outside; None without a range."""
        if self.observation_low is None or self.observation_high is None:
            return None
        pairs = list(zip(self.observation_low, self.observation_high, strict=True))
        room = [
            _FAR * (high - low) if low < high else _FAR_FROM_CONSTANT * max(abs(high), 1.0)
            for low, high in pairs
        ]
        below = tuple(low - r for (low, _), r in zip(pairs, room, strict=True))
        return below, tuple(high + r for (_, high), r in zip(pairs, room, strict=True))

    def distances(self, observation: np.ndarray) -> np.ndarray:
        """Distances [*] of raw observations [*, obs] from the data's centre.

        Raises:
            ValueError: if no distance is known.
        """
        if self.distance_matrix is None or self.distance_centre is None:
            raise ValueError("no distance is known of these data")
        shift = np.asarray(observation, np.float64) - np.array(self.distance_centre)
        return np.linalg.norm(shift @ np.array(self.distance_matrix).T, axis=-1)

    def tell_far(self, observation: Tensor, far: Tensor) -> str:
        """Name the entries [*, obs] that lie ``far`` outside, with values and the data's range."""
        size = len(self.observation_names)
        values, far = observation.reshape(-1, size), far.reshape(-1, size)
        low, high = self.observation_low or (), self.observation_high or ()
        told = []
        for i in far.any(0).nonzero().flatten().tolist():
            value = float(values[int(far[:, i].nonzero()[0]), i])
            is_now, least, most = told_apart(value, low[i], high[i])
            known = f"{least} to {most}" if low[i] < high[i] else f"always {least}"
            told.append(f"{self.observation_names[i]} is {is_now} ({known} in the data)")
        more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        return ", ".join(told[:_SHOWN]) + more
