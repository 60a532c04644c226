"""Pure functions of the ensemble: densities, bounds, the assignment of elites to rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "elite_permutation",
    "gaussian_mixture_log_prob",
    "repeat_members",
    "row_blocks",
    "soft_clamp",
    "threads_of",
]


def soft_clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamp smoothly between two bounds, so that gradients reach both (PETS, sec. A.1).

    Args:
        x: [..., D].
        low: [D].
        high: [D].

    Returns:
        [..., D], above ``low``, and below ``high`` up to ``log(1 + exp(low - high))``, by which
        the limit for large ``x`` exceeds it (3e-5 for bounds of -10 and 0.5).

    Reference: https://arxiv.org/abs/1805.12114
    """
    x = high - torch.nn.functional.softplus(high - x)
    return low + torch.nn.functional.softplus(x - low)


def gaussian_mixture_log_prob(value: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    r"""Log-density of a uniform mixture of diagonal Gaussians (paper sec. 5.2).

    :math:`\log T = \operatorname{logsumexp}_e \log N(y; \mu_e, \sigma_e^2) - \log E`, which
    stays finite, with a finite gradient, however far the value lies from every mean.

    Args:
        value: [B, D].
        mean: [E, B, D].
        log_var: [E, B, D].

    Returns:
        [B], summed over the D dimensions.
    """
    if mean.shape != log_var.shape or mean.shape[1:] != value.shape:
        raise ValueError(
            f"expected value [B, D] with mean and log_var [E, B, D], got {tuple(value.shape)}, "
            f"{tuple(mean.shape)} and {tuple(log_var.shape)}"
        )
    squared = (value - mean).square() * (-log_var).exp()
    log_normal = -0.5 * (squared + log_var + math.log(2 * math.pi)).sum(dim=-1)
    return torch.logsumexp(log_normal, dim=0) - math.log(mean.shape[0])


def elite_permutation(
    num_rows: int, num_elites: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Assign rows to elites: a random permutation cut into equal blocks.

    Rows are padded by repetition to a multiple of ``num_elites``. The position of each row is
    uniform, so each row's elite is uniform too, and all elites get equally many rows.

    Args:
        num_rows: number of rows B.
        num_elites: number of blocks E.
        device: where the indices live.

    Returns:
        Row indices by position [E * ceil(B / E)], block after block, and the position of each
        row [B].
    """
    padded = num_elites * -(-num_rows // num_elites)
    # argsort of uniform numbers, because indexing with torch.randperm does not compile
    positions = torch.rand(padded, device=device).argsort()
    order = positions % num_rows
    # slot j of the permutation holds item positions[j]; items beyond the rows are padding
    inverse = torch.empty_like(positions)
    inverse[positions] = torch.arange(padded, device=device)
    return order, inverse[:num_rows]


def row_blocks(num_members: int, num_rows: int, num_threads: int) -> int:
    """Number of blocks to split each member's rows into, so that threads get equal work.

    A batched product is parallelised over whole matrices, and so are the compiled operations on
    its output: two threads take as long on five members as on six. Five members' rows in two
    blocks are ten matrices, five for each thread.

    Args:
        num_members: members M of the ensemble.
        num_rows: rows B of each.
        num_threads: threads that share the M * blocks matrices.

    Returns:
        A divisor of ``num_rows``, at most ``num_threads``, that leaves at least 64 rows a block
        (smaller products are less efficient). 1 where splitting does not help.
    """
    best, least = 1, math.inf
    for blocks in range(1, num_threads + 1):
        if blocks > 1 and (num_rows % blocks or num_rows < 64 * blocks):
            continue
        matrices = num_members * blocks
        time = -(-matrices // num_threads) / blocks  # of the busiest thread
        if time < 0.99 * least:
            best, least = blocks, time
    return best


def repeat_members(x: Tensor, times: int) -> Tensor:
    """Repeat each member's entry ``times`` times in a row: [M, ...] to [M * times, ...]."""
    if times == 1:
        return x
    return x.unsqueeze(1).expand(-1, times, *x.shape[1:]).reshape(-1, *x.shape[1:])


def threads_of(x: Tensor) -> int:
    """Threads that work on a tensor's operations: torch's setting on a CPU, 1 elsewhere.

    A compiled function keeps the number that it was compiled with; only its speed depends on it.
    """
    return _cpu_threads() if x.device.type == "cpu" else 1


@torch.compiler.assume_constant_result
def _cpu_threads() -> int:
    return torch.get_num_threads()
