"""Some rows of many, for what is measured on fewer than all."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["draw_rows"]


def draw_rows(num_rows: int, max_rows: int, *, seed: int = 0) -> Tensor:
    """Draw row numbers without replacement: the same ones every time, and in ascending order.

    Every n-th row would not do: where the data repeat with a period, as episodes of one length do,
    all of them may be first steps. No global generator is used, so that what is measured leaves a
    run's random numbers alone, and a resumed run measures on the same rows.

    Args:
        num_rows: rows to choose from.
        max_rows: how many to draw at most.

    Keyword Args:
        seed: of the draw.

    Returns:
        int64 [min(num_rows, max_rows)].

    Examples:
        >>> from rambo_trl.data.rows import draw_rows
        >>> draw_rows(3, 10)
        tensor([0, 1, 2])
        >>> draw_rows(10**12, 5).shape  # takes memory for the drawn ones only
        torch.Size([5])
    """
    if num_rows <= max_rows:
        return torch.arange(num_rows)
    generator = np.random.default_rng(seed)
    drawn = generator.choice(num_rows, max_rows, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(drawn.astype(np.int64)))
