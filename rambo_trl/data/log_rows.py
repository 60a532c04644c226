"""The rows of a log in order: sorted by episode and time, repeated rows joined, gaps found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rambo_trl.data.log_files import Column, LogTable, arrow
from rambo_trl.data.log_times import read_times

__all__ = ["LogRows", "order_rows"]

#: of the median interval: a longer one is a gap where no limit is given
GAP_OF_MEDIAN = 1.5


@dataclass(frozen=True)
class LogRows:
    """Rows in order.

    Attributes:
        columns: by name, without the rows that were left out.
        group: int64 [N], ascending: rows of the same episode, or file, share a number.
        time: seconds, float64 [N]; None where the log has no times.
        starts: bool [N]: the first row of a group, or the first after a gap.
        bounded: whether groups are episodes, whose first and last rows are the ends.
        max_gap: the longest time from one row to the next that is no gap; None without times.
        gaps: number of gaps.
        left_out: reasons, with the number of rows.
        notes: what else was found.
    """

    columns: dict[str, Column]
    group: np.ndarray
    time: np.ndarray | None
    starts: np.ndarray
    bounded: bool
    max_gap: float | None
    gaps: int
    left_out: dict[str, int]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.group)


def order_rows(
    table: LogTable,
    *,
    episode: str | None,
    time: str | None,
    time_format: str | None = None,
    per_file: bool = False,
    max_gap: float | None = None,
) -> LogRows:
    """Sort the rows of a log by episode and time, and find where they do not follow each other.

    Rows of one time in one episode are joined where each column has one reading in them at most, or
    equal ones; else none of them is kept, because it is unknown which of them holds.

    Args:
        table: the log.
        episode: the column of the episodes' numbers or names, if any.
        time: the column of the times, if any.
        time_format: see :func:`~rambo_trl.data.log_times.read_times`.
        per_file: no episode goes on in the next file.
        max_gap: the longest time between neighbours, in seconds (or the unit of times that are
            numbers); 1.5 times the median where None.

    Raises:
        ValueError: if rows of an episode lie apart and there are no times to sort them by, or
            lines are malformed and there are none to find the gap by.
    """
    left_out: dict[str, int] = {}
    notes: list[str] = []
    times = None if time is None else read_times(table.raw[time], time, time_format)
    if table.malformed:
        if times is None:
            raise ValueError(
                f"{table.malformed} lines have another number of cells than the header: correct "
                "them, or give --time, by which the gaps that they leave are found"
            )
        left_out["lines with another number of cells than the header"] = table.malformed
    per_file = per_file or (times is None and episode is None)
    bounded = episode is not None or (per_file and len(table.files) > 1)
    group = _numbers(table.raw[episode]) if episode is not None else np.zeros(len(table), np.int64)
    keep = group >= 0
    left_out[f"rows without {episode}"] = int((~keep).sum())
    if times is not None:
        left_out[f"rows without {time}"] = int((keep & np.isnan(times)).sum())
        keep &= ~np.isnan(times)
    if per_file or (times is None and len(table.files) > 1):
        group = np.where(group >= 0, group * len(table.files) + table.file, group)
    index = np.flatnonzero(keep)
    group = _by_first(group[index], None if times is None else times[index])
    if times is None:
        apart = np.flatnonzero(np.diff(group) < 0)
        if len(apart):
            raise ValueError(
                f"the rows of an episode lie apart (row {index[apart[0] + 1]} goes back to an "
                f"earlier {episode}): sort the log, or give --time"
            )
    else:
        behind = _steps_back(times[index], group, table.file[index])
        if len(behind):
            notes.append(
                f"rows were not in the order of {time} and are sorted by it: {len(behind)} times "
                f"it goes back within an episode, by up to {behind.max():g} s"
                + (
                    "; if clocks were put back there (summer time), write times with their offset"
                    if len(behind) < 10 and np.isclose(behind, 3600, rtol=0.1).any()
                    else ""
                )
            )
        order = np.lexsort((times[index], group))
        index, group = index[order], group[order]
        times = times[index]
    columns = {
        name: replace(column, values=column.values[index]) for name, column in table.columns.items()
    }
    new = np.diff(group, prepend=-1) != 0
    if times is not None:
        first = new | (np.diff(times, prepend=np.nan) != 0)
        if not first.all():
            kept = _join(columns, first, left_out)
            columns = {
                name: replace(column, values=column.values[kept])
                for name, column in columns.items()
            }
            group, times = group[kept], times[kept]
            new = np.diff(group, prepend=-1) != 0
    gaps = np.zeros(len(group), bool)
    if times is not None:
        intervals = np.diff(times, prepend=np.nan)
        within = intervals[~new]
        if max_gap is None and len(within):
            max_gap = GAP_OF_MEDIAN * float(np.median(within))
            notes.append(
                f"rows more than {max_gap:g} s apart ({GAP_OF_MEDIAN} times the median) are no "
                "neighbours; --max-gap sets another limit"
            )
        # a hundredth of the limit, for times that were rounded
        gaps = ~new & (intervals > (max_gap or 0.0) * (1 + 1e-9))
    return LogRows(
        columns,
        group,
        times,
        new | gaps,
        bounded,
        max_gap if times is not None else None,
        int(gaps.sum()),
        {reason: count for reason, count in left_out.items() if count},
        tuple(notes),
    )


def _numbers(parts: Sequence[Any]) -> np.ndarray:
    """Number the episodes, -1 where there is none; 1 and 1.0 are the same."""
    pa = arrow()
    pc = pa.compute
    texts = []
    for part in parts:
        if pa.types.is_floating(part.type) and pc.all(pc.equal(part, pc.floor(part))).as_py():
            part = part.cast(pa.int64())
        text = pc.utf8_trim_whitespace(part.cast(pa.string()))
        texts += text.chunks
    encoded = pc.dictionary_encode(pa.chunked_array(texts, pa.string())).combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([]).dictionary_encode()
    words = encoded.dictionary.to_pylist()
    numbers = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    empty = [i for i, word in enumerate(words) if word in ("", "nan", "NaN", "None", "null")]
    return np.where(np.isin(numbers, empty), -1, numbers)


def _by_first(group: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """Number the groups anew, in the order of their first rows, or of their first times."""
    if not len(group):
        return group
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    if times is None:
        when: np.ndarray = first
    else:
        when = np.full(len(first), np.inf)
        np.minimum.at(when, inverse, times)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(when, kind="stable")] = np.arange(len(first))
    return rank[inverse]


def _steps_back(times: np.ndarray, group: np.ndarray, file: np.ndarray) -> np.ndarray:
    """By how much time goes back from a row of a file to the next one of the same group."""
    order = np.lexsort((np.arange(len(times)), file, group))
    steps = np.diff(times[order])
    same = (np.diff(group[order]) == 0) & (np.diff(file[order]) == 0)
    return -steps[same & (steps < 0)]


def _join(columns: dict[str, Column], first: np.ndarray, left_out: dict[str, int]) -> np.ndarray:
    """Join rows of the same time, in place; return the rows that stay.

    Args:
        columns: in order.
        first: bool [N], the first row of each time.
        left_out: is told why rows do not stay.
    """
    begin = np.flatnonzero(first)
    size = np.diff(np.append(begin, len(first)))
    differ = np.zeros(len(begin), bool)
    for column in columns.values():
        low = np.fmin.reduceat(column.values, begin)
        differ |= np.fmax.reduceat(column.values, begin) > low
        column.values[begin] = low
    left_out["rows that only repeat or complete another one of the same time"] = int(
        (size[~differ] - 1).sum()
    )
    left_out["rows that contradict another one of the same time"] = int(size[differ].sum())
    return begin[~differ]
