"""The ensemble's pure functions against float64 closed forms and counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rambo_trl.modules.functional import (
    elite_permutation,
    gaussian_mixture_log_prob,
    repeat_members,
    row_blocks,
    soft_clamp,
)


def brute_force_density(value: np.ndarray, mean: np.ndarray, log_var: np.ndarray) -> np.ndarray:
    """Average of the members' products of normal densities, element by element."""
    num_members, num_rows, size = mean.shape
    out = np.zeros(num_rows)
    for b in range(num_rows):
        for e in range(num_members):
            product = 1.0
            for d in range(size):
                std = math.exp(0.5 * log_var[e, b, d])
                product *= stats.norm.pdf(value[b, d], mean[e, b, d], std)
            out[b] += product / num_members
    return out


def test_mixture_log_prob_is_the_log_of_the_members_mean_density() -> None:
    mean, log_var = torch.randn(5, 7, 4).double(), torch.randn(5, 7, 4).double()
    value = torch.randn(7, 4).double()
    got = gaussian_mixture_log_prob(value, mean, log_var)
    want = np.log(brute_force_density(value.numpy(), mean.numpy(), log_var.numpy()))
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-10)


def test_mixture_log_prob_far_from_every_member_is_finite_with_the_right_gradient() -> None:
    # 40 standard deviations in each of 3 dimensions: every density underflows, even in float64
    mean = torch.tensor([[[0.0, 0.0, 0.0]], [[0.02, 0.0, -0.02]]])
    log_var = torch.full_like(mean, 2 * math.log(0.1))
    value = torch.full((1, 3), 4.0)
    for x in (mean, log_var, value):
        x.requires_grad_()
    got = gaussian_mixture_log_prob(value, mean, log_var)
    assert math.exp(-0.5 * 3 * 40**2) == 0.0

    # float64 by hand, with the largest exponent taken out
    m, v, y = (x.detach().double() for x in (mean, log_var.exp(), value))
    log_member = (-0.5 * ((y - m) ** 2 / v + v.log() + math.log(2 * math.pi))).sum(-1)
    shift = log_member.max()
    weights = (log_member - shift).exp()
    want = shift + (weights.sum() / 2).log()
    torch.testing.assert_close(got.double(), want.reshape(1), rtol=1e-5, atol=0)

    share = (weights / weights.sum())[..., None]
    want_mean = share * (y - m) / v
    want_log_var = share * 0.5 * ((y - m) ** 2 / v - 1)
    got.sum().backward()
    torch.testing.assert_close(mean.grad.double(), want_mean, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(log_var.grad.double(), want_log_var, rtol=2e-3, atol=1e-2)
    torch.testing.assert_close(value.grad.double(), -want_mean.sum(0), rtol=2e-3, atol=1e-3)


def test_mixture_log_prob_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"value \[B, D\]"):
        gaussian_mixture_log_prob(torch.zeros(1, 2), torch.zeros(3, 4, 2), torch.zeros(3, 4, 2))


def test_soft_clamp_bounds_and_middle() -> None:
    low, high = torch.tensor([-10.0, -1.0]).double(), torch.tensor([0.5, 1.0]).double()
    x = torch.linspace(-1e4, 1e4, 20_001).double()[:, None].expand(-1, 2)
    y = soft_clamp(x, low, high)
    assert (y >= low).all()
    # the published order (upper bound first) overshoots the upper one by this much at most
    overshoot = torch.log1p((low - high).exp())
    assert (y <= high + overshoot + 1e-12).all()
    torch.testing.assert_close(y[-1], high + overshoot)
    torch.testing.assert_close(y[0], low)
    assert (y[1:] >= y[:-1]).all(), "monotone"
    x = torch.tensor([-5.0, -4.0]).double()
    y = soft_clamp(x, torch.tensor(-40.0).double(), torch.tensor(40.0).double())
    torch.testing.assert_close(y, x, rtol=0, atol=1e-12)


def test_soft_clamp_gradients_reach_the_bound_that_acts() -> None:
    low = torch.tensor(-10.0, requires_grad=True)
    high = torch.tensor(0.5, requires_grad=True)
    soft_clamp(torch.tensor(30.0), low, high).backward()
    assert high.grad.item() == pytest.approx(1, abs=1e-3)
    assert low.grad.item() == pytest.approx(0, abs=1e-3)
    low.grad = high.grad = None
    soft_clamp(torch.tensor(-40.0), low, high).backward()
    assert low.grad.item() == pytest.approx(1, abs=1e-3)
    assert high.grad.item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("rows", "elites"), [(10, 5), (11, 5), (4, 5), (1, 5), (1, 1), (13, 3)])
def test_elite_permutation_deals_every_row_to_one_block(rows: int, elites: int) -> None:
    for _ in range(20):
        order, inverse = elite_permutation(rows, elites)
        assert order.shape[0] % elites == 0
        assert order.shape[0] - rows < elites, "no more padding than needed"
        assert order.shape[0] >= rows
        assert inverse.unique().shape == (rows,), "no two rows share a slot"
        assert order[inverse].tolist() == list(range(rows))


@pytest.mark.parametrize("rows", [10, 3])
def test_elite_permutation_is_uniform_for_every_row(rows: int) -> None:
    elites, draws = 5, 1500
    counts = np.zeros((rows, elites))
    for _ in range(draws):
        order, inverse = elite_permutation(rows, elites)
        block = inverse // (order.shape[0] // elites)
        counts[np.arange(rows), block.numpy()] += 1
    for row in range(rows):
        assert stats.chisquare(counts[row]).pvalue > 1e-4, f"row {row}: {counts[row]}"


@pytest.mark.parametrize(
    ("members", "rows", "threads", "blocks"),
    [
        (5, 256, 1, 1),  # nobody to share with
        (5, 256, 2, 2),  # five matrices each, not three and two
        (4, 256, 2, 1),  # even as they are
        (7, 256, 2, 2),
        (5, 257, 2, 1),  # rows that cannot be cut evenly
        (5, 100, 2, 1),  # blocks of 50 rows are too small
        (5, 256, 4, 4),
        (7, 320, 16, 2),  # 14 of 16 busy, at 160 rows
    ],
)
def test_rows_are_cut_so_that_threads_get_equal_shares(
    members: int, rows: int, threads: int, blocks: int
) -> None:
    assert row_blocks(members, rows, threads) == blocks


def test_members_are_repeated_one_after_the_other() -> None:
    x = torch.arange(6).reshape(3, 2)
    assert torch.equal(repeat_members(x, 2), x.repeat_interleave(2, dim=0))
    assert repeat_members(x, 1) is x
