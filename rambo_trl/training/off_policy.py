"""Importance-weighted estimates of a policy's value from episodes of another one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["WeightedEstimate", "effective_sample_size", "weighted_doubly_robust"]


@dataclass(frozen=True, eq=False)
class WeightedEstimate:
    """A weighted doubly robust estimate.

    Attributes:
        value: the estimate.
        resampled: the same from bootstraps of the episodes, [resamples].
        counts: how often each episode is in each bootstrap, [resamples, E].
    """

    value: float
    resampled: np.ndarray
    counts: np.ndarray


def _cumulative(log_ratios: list[np.ndarray]) -> np.ndarray:
    """The log of each episode's product of ratios after each step, [E, T], its last one held."""
    longest = max(map(len, log_ratios))
    sums = [np.cumsum(x, dtype=np.float64) for x in log_ratios]
    return np.stack([np.pad(x, (0, longest - len(x)), mode="edge") for x in sums])


def effective_sample_size(log_ratios: list[np.ndarray]) -> np.ndarray:
    """How many episodes the importance weights amount to after each step, [T].

    It is (sum of weights)^2 / sum of squared weights, between 1 and the number of episodes (Owen,
    "Monte Carlo theory, methods and examples", sec. 9.3).

    Args:
        log_ratios: log pi(a | s) - log b(a | s) of each episode's steps, [length].
    """
    logs = _cumulative(log_ratios)
    weights = np.exp(logs - logs.max(axis=0))
    return weights.sum(axis=0) ** 2 / (weights**2).sum(axis=0)


def weighted_doubly_robust(
    rewards: list[np.ndarray],
    log_ratios: list[np.ndarray],
    qvalues: list[np.ndarray],
    values: list[np.ndarray],
    *,
    gamma: float,
    resamples: int = 500,
    seed: int = 0,
) -> WeightedEstimate:
    r"""The weighted doubly robust estimate of a policy's discounted value.

    .. math::
        \sum_t \gamma^t \sum_i \left[ w_{it} \left(r_{it} - \hat Q(s_{it}, a_{it})\right)
            + w_{i,t-1} \hat V(s_{it}) \right], \quad
        w_{it} = \frac{\rho_{it}}{\sum_j \rho_{jt}}, \quad
        \rho_{it} = \prod_{k \le t} \frac{\pi(a_{ik} | s_{ik})}{b(a_{ik} | s_{ik})}

    (Thomas and Brunskill 2016, https://arxiv.org/abs/1604.00923, sec. 5; the doubly robust
    estimator is Jiang and Li's, https://arxiv.org/abs/1511.03722, Eq. 10). It is consistent where
    the ratios are right, whatever Q, and has little variance where Q is right. With Q and V of 0 it
    is weighted per-decision importance sampling. An episode that has ended stays in its end, with
    its last weight.

    Args:
        rewards: of each episode's steps, [length].
        log_ratios: log pi(a | s) - log b(a | s), likewise.
        qvalues: Q(s, a), likewise.
        values: V(s), [length + 1]: the last entry is the value after the last step, 0 where the
            episode terminated, V of the last state where it was cut off.

    Keyword Args:
        gamma: discount factor.
        resamples: bootstraps of the episodes.
        seed: of these.
    """
    logs = _cumulative(log_ratios)
    number, longest = logs.shape

    def padded(parts: list[np.ndarray], length: int) -> np.ndarray:
        return np.stack([np.pad(x.astype(np.float64), (0, length - len(x))) for x in parts])

    correction = padded(rewards, longest) - padded(qvalues, longest)
    value = padded(values, longest + 1)
    # the largest weight of each step is 1, so that none overflows
    rho = np.exp(logs - logs.max(axis=0))
    before = np.concatenate([np.ones((number, 1)), rho], axis=1)
    discount = gamma ** np.arange(longest + 1)

    def estimate(counts: np.ndarray) -> np.ndarray:  # [R, E] -> [R]
        with np.errstate(invalid="ignore"):
            corrected = (counts @ (rho * correction)) / (counts @ rho)
            expected = (counts @ (before * value)) / (counts @ before)
        return np.nan_to_num(corrected) @ discount[:-1] + np.nan_to_num(expected) @ discount

    rng = np.random.default_rng(seed)
    counts = rng.multinomial(number, np.full(number, 1 / number), size=resamples).astype(float)
    return WeightedEstimate(float(estimate(np.ones((1, number)))[0]), estimate(counts), counts)
