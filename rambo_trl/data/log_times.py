"""A log's times as seconds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from rambo_trl.data.log_files import arrow, is_text, some_cells, without_empty

__all__ = ["read_times"]


def read_times(parts: Sequence[Any], name: str, layout: str | None = None) -> np.ndarray:
    """Seconds since the earliest time, float64 [N], NaN where there is none.

    Args:
        parts: Arrow columns, one a file: seconds as numbers, dates, or text of either, dates by
            ISO 8601, with the offset from UTC or without.
        name: of the column.
        layout: of dates in other forms, as ``strptime`` takes it, such as
            ``"%d.%m.%Y %H:%M:%S"``.

    Raises:
        ValueError: if they are neither.
    """
    pa = arrow()
    given: list[Any] = []
    for part in parts:
        if is_text(part.type):
            part = _times_of_text(part.cast(pa.string()), name, layout)
        if pa.types.is_date(part.type):
            part = part.cast(pa.timestamp("us"))
        given.append(part)
    kinds = {_kind_of_time(part.type) for part in given if part.null_count < len(part)}
    if "other" in kinds:
        raise ValueError(f"--time: column {name!r} of type {given[0].type} holds no times")
    if len(kinds) > 1:
        raise ValueError(
            f"--time: column {name!r} holds {' and '.join(sorted(kinds))} in different files: "
            "write all alike"
        )
    if kinds <= {"numbers"}:
        times = np.concatenate([part.cast(pa.float64()).to_numpy() for part in given])
        times = times.astype(np.float64)
        times[~np.isfinite(times)] = np.nan
        return times
    stamps = [part.cast(pa.timestamp("ns", part.type.tz)).cast(pa.int64()) for part in given]
    known = np.concatenate([part.is_valid().to_numpy() for part in stamps])
    whole = np.concatenate([part.fill_null(0).to_numpy() for part in stamps])
    first = whole[known].min() if known.any() else 0
    return np.where(known, (whole - first) / 1e9, np.nan)


def _kind_of_time(kind: Any) -> str:
    pa = arrow()
    if pa.types.is_timestamp(kind):
        return "dates with an offset from UTC" if kind.tz else "dates without one"
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return "numbers" if is_number else "other"


def _times_of_text(cells: Any, name: str, layout: str | None) -> Any:
    pa = arrow()
    pc = pa.compute
    cells = without_empty(cells)
    if layout is not None:
        try:
            stamps = [
                None if cell is None else datetime.strptime(cell, layout)
                for cell in cells.to_pylist()
            ]
        except ValueError as error:
            raise ValueError(f"--time-format: column {name!r}: {error}") from None
        aware = [s is not None and s.tzinfo is not None for s in stamps]
        if any(aware):
            stamps = [None if s is None else s.astimezone(timezone.utc) for s in stamps]
            return pa.chunked_array([pa.array(stamps, pa.timestamp("us", "UTC"))])
        return pa.chunked_array([pa.array(stamps, pa.timestamp("us"))])
    # an offset may be set off by a space
    dates = pc.replace_substring_regex(cells, r" ([+-]\d\d:?\d\d|Z)$", r"\1")
    numbers = pc.replace_substring(cells, ",", ".")
    for text, kind in (
        (numbers, pa.float64()),
        (dates, pa.timestamp("ns")),
        (dates, pa.timestamp("ns", "UTC")),
    ):
        try:
            return text.cast(kind)
        except pa.ArrowInvalid:
            continue
    some = pc.drop_null(cells)[:3].to_pylist()
    raise ValueError(
        f"--time: column {name!r} holds neither seconds nor dates as 2024-12-31 23:59:59, with an "
        f"offset such as +01:00 in all rows or in none, but {some_cells(some)}: give "
        "--time-format, such as '%d.%m.%Y %H:%M:%S'"
    )
