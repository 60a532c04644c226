"""The objectives' pure functions against numbers worked out by hand and plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from rambo_trl.objectives import functional


def test_advantage_by_hand_with_a_terminated_row() -> None:
    got = functional.model_advantage(
        qvalue=torch.tensor([1.0, 2.0, 3.0]),
        reward=torch.tensor([0.5, -1.0, 4.0]),
        next_value=torch.tensor([10.0, 20.0, 30.0]),
        terminated=torch.tensor([False, True, False]),
        gamma=0.9,
    )
    torch.testing.assert_close(got, torch.tensor([8.5, -3.0, 28.0]))


def test_a_value_beyond_the_end_may_be_anything() -> None:
    got = functional.model_advantage(
        torch.zeros(2),
        torch.ones(2),
        torch.tensor([math.nan, math.inf]),
        torch.ones(2, dtype=torch.bool),
        0.99,
    )
    torch.testing.assert_close(got, torch.ones(2))


def test_advantage_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        functional.model_advantage(
            torch.zeros(3),
            torch.zeros(3, 1),
            torch.zeros(3),
            torch.zeros(3, dtype=torch.bool),
            0.99,
        )


def test_standardize_by_hand() -> None:
    # mean 5, variance (9 + 1 + 1 + 9) / 4 = 5
    got = functional.standardize(torch.tensor([2.0, 4.0, 6.0, 8.0]))
    want = torch.tensor([-3.0, -1.0, 1.0, 3.0]) / math.sqrt(5)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("x", [torch.tensor([3.0]), torch.full((4,), 3.0)])
def test_standardize_of_equal_entries_is_zero(x: torch.Tensor) -> None:
    torch.testing.assert_close(functional.standardize(x), torch.zeros_like(x))


@pytest.mark.parametrize("own_targets", [False, True])
def test_ensemble_nll_against_a_plain_loop(own_targets: bool) -> None:
    mean, log_var = torch.randn(3, 4, 2).double(), torch.randn(3, 4, 2).double()
    target = torch.randn(3, 4, 2).double() if own_targets else torch.randn(4, 2).double()
    got = functional.ensemble_nll(mean, log_var, target)
    assert got.shape == (3, 4)
    for m in range(3):
        for b in range(4):
            want = 0.0
            for d in range(2):
                y = (target[m, b, d] if own_targets else target[b, d]).item()
                v = log_var[m, b, d].item()
                want += ((mean[m, b, d].item() - y) ** 2 / math.exp(v) + v) / 2
            assert got[m, b].item() == pytest.approx(want, rel=1e-12)


def test_ensemble_nll_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="target"):
        functional.ensemble_nll(torch.zeros(3, 4, 2), torch.zeros(3, 4, 2), torch.zeros(4, 1))


def test_penalties_by_hand() -> None:
    bounds = functional.log_var_bound_penalty(
        torch.tensor([-10.0, -8.0]), torch.tensor([0.5, 0.25])
    )
    assert bounds.item() == pytest.approx(18.75)
    weights = [torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0]], [[1.0]]])]
    decay = functional.weight_decay_penalty(weights, [0.1, 0.01])
    assert decay.item() == pytest.approx(0.5 * (0.1 * 5 + 0.01 * 10))
