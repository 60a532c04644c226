"""The objectives' equations as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "each_critic",
    "ensemble_nll",
    "kl_estimate",
    "log_var_bound_penalty",
    "model_advantage",
    "squared_total_variation_estimate",
    "standardize",
    "weight_decay_penalty",
]


def model_advantage(
    qvalue: Tensor, reward: Tensor, next_value: Tensor, terminated: Tensor, gamma: float | Tensor
) -> Tensor:
    r"""Advantage of a sampled next state in the Model Gradient (paper Eq. 5).

    :math:`A = r + \gamma (1 - d) V(s') - Q(s, a)`, the factor of
    :math:`\nabla \log T(s', r | s, a)`.

    Args:
        qvalue: Q(s, a) [*].
        reward: r [*].
        next_value: V(s') [*].
        terminated: whether s' ends the episode, boolean [*].
        gamma: discount factor.

    Returns:
        [*]

    Raises:
        ValueError: if the shapes differ, because broadcasting would silently mix rows.
    """
    shapes = {qvalue.shape, reward.shape, next_value.shape, terminated.shape}
    if len(shapes) > 1:
        raise ValueError(f"model_advantage needs equal shapes, got {sorted(map(tuple, shapes))}")
    next_value = torch.where(terminated, torch.zeros_like(next_value), next_value)
    return reward + gamma * next_value - qvalue


def each_critic(value: Tensor, shape: torch.Size, labelled: torch.Size, name: str) -> Tensor:
    """Bring the values of K critics for a batch [*B] into one shape.

    Args:
        value: [*B], [*B, 1] or [K, *B, 1]; [K, *B] where it is unambiguous.
        shape: [*B].
        labelled: the batch size of the critics' output. If it is [*B], the rows come first,
            whatever the number of critics.
        name: of the values, for the message.

    Returns:
        [K, *B]

    Raises:
        ValueError: if the shape is ambiguous about the row that a value belongs to.
    """
    got, column = value.shape, (*shape, 1)
    single = not shape or got in (shape, column)  # without a batch no rows can be mixed up
    stacked = got[1:] == column or (got[1:] == shape and (got[:-1] != shape or got == labelled))
    if not (single or (stacked and labelled != shape)):
        raise ValueError(
            f"{name} has shape {list(got)}, expected [*B], [*B, 1] or, of K critics, "
            f"[K, *B, 1], for a batch of {list(shape)}"
        )
    return value.reshape(-1, *shape)


def standardize(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Centre and scale by the batch's own mean and standard deviation (all entries)."""
    centred = x - x.mean()
    return centred / (centred.square().mean().sqrt() + eps)


def ensemble_nll(mean: Tensor, log_var: Tensor, target: Tensor, beta: float = 0.0) -> Tensor:
    r"""Gaussian likelihood term of the model's loss, up to constants (paper Eq. 9).

    :math:`(\mu - y)^2 e^{-\log \sigma^2} + \log \sigma^2`, averaged over the D dimensions.

    Args:
        mean: [M, B, D].
        log_var: [M, B, D].
        target: [B, D], the same for all members, or [M, B, D].
        beta: each term is multiplied by :math:`\sigma^{2\beta}`, taken as a constant (beta-NLL,
            https://arxiv.org/abs/2203.09168, Eq. 5); 0 is the likelihood itself.

    Returns:
        [M, B]
    """
    if mean.shape != log_var.shape or target.shape not in (mean.shape, mean.shape[1:]):
        raise ValueError(
            f"expected mean and log_var [M, B, D] with target [B, D] or [M, B, D], got "
            f"{tuple(mean.shape)}, {tuple(log_var.shape)} and {tuple(target.shape)}"
        )
    nll = (mean - target).square() * (-log_var).exp() + log_var
    if beta:
        nll = nll * (beta * log_var.detach()).exp()
    return nll.mean(dim=-1)


def log_var_bound_penalty(min_log_var: Tensor, max_log_var: Tensor) -> Tensor:
    """Keep the learnt log-variance bounds [D] from drifting apart: ``sum max - sum min``."""
    return max_log_var.sum() - min_log_var.sum()


def weight_decay_penalty(weights: list[Tensor], coefficients: list[float]) -> Tensor:
    """``sum_layers 0.5 * coefficient * sum(weight ** 2)``."""
    terms = [0.5 * c * w.square().sum() for w, c in zip(weights, coefficients, strict=True)]
    return torch.stack(terms).sum()


def kl_estimate(log_ratio: Tensor) -> Tensor:
    r"""Unbiased, non-negative estimates of :math:`KL(p \| q)` from samples of p.

    :math:`q/p - 1 - \log(q/p)`: the plain :math:`-\log(q/p)` plus a control variate of mean zero
    that removes most of the variance where the two are close.

    Args:
        log_ratio: :math:`\log q(x) - \log p(x)` of samples x from p [*].

    Returns:
        [*]
    """
    return torch.expm1(log_ratio) - log_ratio


def squared_total_variation_estimate(log_ratio: Tensor) -> Tensor:
    r"""Unbiased estimate of :math:`TV(p, q)^2` from K samples of p (the distance of paper Eq. 8).

    :math:`TV = E_p[(1 - q/p)_+]`. The square of the samples' mean would be too large by its
    variance; the mean product of two different samples is not.

    Args:
        log_ratio: :math:`\log q(x) - \log p(x)` [K, *], K at least 2.

    Returns:
        [*]

    Raises:
        ValueError: if there are fewer than two samples.
    """
    samples = log_ratio.shape[0]
    if samples < 2:
        raise ValueError(f"squared total variation needs at least 2 samples, got {samples}")
    missing = -torch.expm1(log_ratio.clamp(max=0.0))
    return (missing.sum(dim=0).square() - missing.square().sum(dim=0)) / (samples * (samples - 1))
