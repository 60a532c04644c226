"""Statistics over all rows of a data set that make no copy of all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["largest_magnitude", "mean_and_std"]

#: rows looked at at a time; up to so many, torch's own reductions are the result
CHUNK_ROWS = 1 << 21


def mean_and_std(
    rows: Callable[[int, int], Tensor], num_rows: int, *, chunk_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [size] of each column, without correction.

    Args:
        rows: the rows from a start to before a stop, [stop - start, size].
        num_rows: how many there are.
        chunk_rows: rows asked for at a time; :data:`CHUNK_ROWS` where None.
    """
    chunk = chunk_rows or CHUNK_ROWS
    if num_rows <= chunk:
        values = rows(0, num_rows)
        return values.mean(dim=0), values.std(dim=0, correction=0)
    first = rows(0, 1)[0]
    mean, squares = torch.zeros_like(first).double(), torch.zeros_like(first).double()
    for start in range(0, num_rows, chunk):
        stop = min(start + chunk, num_rows)
        own = [x.double() for x in torch.var_mean(rows(start, stop), dim=0, correction=0)]
        # both parts' squares around their means, and those of the means around the common one
        share, difference = (stop - start) / stop, own[1] - mean
        squares += (stop - start) * own[0] + start * share * difference.square()
        mean += share * difference
    return mean.to(first), (squares / num_rows).sqrt().to(first)


def largest_magnitude(values: Tensor) -> float:
    """The largest absolute value; ``values.abs()`` would be a copy."""
    return abs(max(float(values.max()), -float(values.min())))
