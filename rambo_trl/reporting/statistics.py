"""Sound aggregates for few seeds: interquartile mean, stratified bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

#: bootstrap samples; the intervals' ends then repeat to a few tenths of a per cent
RESAMPLES = 5000


def interquartile_mean(scores: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The mean of the middle half, the lowest and the highest quarter left out.

    Of three scores or fewer nothing can be left out: it is then the mean.

    Args:
        scores: any shape.
        axis: along which; all of them by default.

    Reference: https://arxiv.org/abs/2108.13264, sec. 4.3
    """
    return stats.trim_mean(scores, 0.25, axis=axis)


def iqm_interval(
    scores: Sequence[Sequence[float]], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of the interquartile mean of all scores, by stratified bootstrap.

    Each sample draws, with replacement and within each task, as many runs as the task has.

    Args:
        scores: the runs' scores, task by task; numbers of runs may differ.

    Keyword Args:
        level: probability that the interval is to have.
        seed: of the bootstrap.

    Returns:
        Its ends; None if a task has a single run, whose spread is not known.

    Reference: https://arxiv.org/abs/2108.13264, sec. 4.1
    """
    if not scores or min(map(len, scores)) < 2:
        return None
    result = stats.bootstrap(
        [np.asarray(task, dtype=float) for task in scores],
        lambda *tasks, axis: interquartile_mean(np.concatenate(tasks, axis=axis), axis=axis),
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return float(low), float(high)
