"""Statistics over the rows of a data set, computed in chunks instead of on a copy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["largest_magnitude", "mean_and_std"]

#: rows per chunk; for up to this many the result is that of torch's reductions
CHUNK_ROWS = 1 << 21


def mean_and_std(
    rows: Callable[[int, int], Tensor], num_rows: int, *, chunk_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [size] of each column, without correction.

    Args:
        rows: returns the rows ``start:stop``, [stop - start, size].
        num_rows: number of rows.
        chunk_rows: rows requested at a time; :data:`CHUNK_ROWS` by default.
    """
    chunk = chunk_rows or CHUNK_ROWS
    if num_rows <= chunk:
        values = rows(0, num_rows)
        return values.mean(dim=0), values.std(dim=0, correction=0)
    first = rows(0, 1)[0]
    mean, squares = torch.zeros_like(first).double(), torch.zeros_like(first).double()
    for start in range(0, num_rows, chunk):
        stop = min(start + chunk, num_rows)
        var, chunk_mean = (
            x.double() for x in torch.var_mean(rows(start, stop), dim=0, correction=0)
        )
        # squares around the two parts' means, plus those of the means around the common one
        share, difference = (stop - start) / stop, chunk_mean - mean
        squares += (stop - start) * var + start * share * difference.square()
        mean += share * difference
    return mean.to(first), (squares / num_rows).sqrt().to(first)


def largest_magnitude(values: Tensor) -> float:
    """The largest absolute value; ``values.abs()`` would be a copy."""
    return abs(max(float(values.max()), -float(values.min())))
