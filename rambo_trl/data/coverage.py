"""How much of the space data cover: the actions of their bounds, the states of their directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rambo_trl.data.offline_dataset import OfflineDataset
from rambo_trl.data.rows import draw_rows

__all__ = ["Coverage", "measure_coverage"]

_BINS = 20
_MAX_ROWS = 100_000


@dataclass(frozen=True)
class Coverage:
    """How widely data are spread, each number compared with an even spread.

    Attributes:
        actions: for each action entry the share of its bounds that an even spread of the same
            entropy would fill, from 1 / 20 (one value) to 1 (uniform): the exponential of the
            entropy of 20 bins, over 20.
        directions: over how many directions of the observation an even spread would have the same
            variances: the participation ratio of the correlation matrix's eigenvalues,
            (sum)^2 / sum of squares. Entries that always move together count once, constant ones
            not at all.
        plane: rows [N, 2] in the two directions in which standardised observations vary most.
        variance: the share of the variance in that plane.
    """

    actions: np.ndarray
    directions: float
    plane: np.ndarray
    variance: float


def measure_coverage(dataset: OfflineDataset) -> Coverage:
    """Measure how much of the space a data set covers, on at most 100,000 of its rows."""
    rows = dataset.transitions[draw_rows(len(dataset), _MAX_ROWS)]
    share = [_even_share(values, (-1.0, 1.0)) for values in rows["action"].numpy().T]
    observation = rows["observation"].numpy().astype(np.float64)
    observation = observation - observation.mean(axis=0)
    std = observation.std(axis=0)
    moving = std > 1e-5  # others are constant but for rounding
    observation[:, moving] /= std[moving]
    observation[:, ~moving] = 0.0
    values, directions = np.linalg.eigh(observation.T @ observation / len(observation))
    total = values.sum()
    return Coverage(
        actions=np.array(share),
        directions=float(total**2 / np.square(values).sum()) if total > 0 else 0.0,
        plane=observation @ directions[:, : -min(2, len(values)) - 1 : -1],
        variance=float(values[-2:].sum() / total) if total > 0 else 0.0,
    )


def _even_share(values: np.ndarray, bounds: tuple[float, float]) -> float:
    """The exponential of the histogram's entropy, as a share of the bins."""
    counts, _ = np.histogram(np.clip(values, *bounds), bins=_BINS, range=bounds)
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()) / _BINS)
