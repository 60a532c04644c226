"""Fitted Q evaluation against the closed form of a small Markov decision process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from markov_chain import GAMMA, REWARD, STATES, chain_data, chain_policy, true_values
from tensordict import TensorDict
from torch import Tensor

from rambo_trl.data import OfflineDataset
from rambo_trl.data.blocks import EpisodeBlocks
from rambo_trl.training.fitted_q import Act, FittedQ, fit_q_evaluation

#: what a fit is allowed to be off in each state; the values that broken versions give are 4 times
#: as far away, see test_the_chain_tells_broken_versions_apart
TOLERANCE = 0.3
SIGNS = [1, 1, 1, -1]
EVERY_STATE = TensorDict(observation=torch.eye(STATES), batch_size=[STATES])


def fit(data: OfflineDataset, policy: Act | None, **settings) -> FittedQ:
    blocks = EpisodeBlocks.of(data, gamma=GAMMA)
    given = {
        "episodes": blocks.training_rows,
        "starts": data.transitions[torch.from_numpy(blocks.held_out_rows[:, 0])],
        "gamma": GAMMA,
        "hidden_sizes": (32, 32),
        "num_qvalue_nets": 3,
        "updates": 500,
        "regression_updates": 100,
        "lr": 3e-3,
    } | settings
    return fit_q_evaluation(data.transitions, policy, **given)


@pytest.fixture(scope="module")
def data() -> OfflineDataset:
    return chain_data(400)


def sampled(observation: Tensor) -> Tensor:
    """Goes forward with probability 0.8."""
    forward = torch.rand(*observation.shape[:-1], 1) < 0.8
    return torch.where(forward, 0.5, -0.5)


def test_the_values_are_those_of_the_closed_form(data: OfflineDataset) -> None:
    fitted = fit(data, chain_policy(SIGNS))
    truth = true_values((np.array(SIGNS) == 1).astype(float))
    np.testing.assert_allclose(fitted.values(EVERY_STATE).mean(0), truth, atol=TOLERANCE)
    assert fitted.unsettled is None


def test_a_sampled_policy_is_evaluated_by_its_samples(data: OfflineDataset) -> None:
    fitted = fit(data, sampled, deterministic=False)
    values = fitted.values(EVERY_STATE).mean(0)
    np.testing.assert_allclose(values, true_values(np.full(STATES, 0.8)), atol=TOLERANCE)


def test_the_logged_behaviour_is_evaluated_by_the_logged_actions(data: OfflineDataset) -> None:
    fitted = fit(data, None)
    rows = data.transitions[:2000]
    state = rows["observation"].argmax(-1)
    values = fitted.values(rows).mean(0)
    means = [float(values[state == s].mean()) for s in range(STATES)]
    np.testing.assert_allclose(means, true_values(np.full(STATES, 0.5)), atol=TOLERANCE)


def test_the_chain_tells_broken_versions_apart() -> None:
    forward = (np.array(SIGNS) == 1).astype(float)
    truth = true_values(forward)
    broken = {
        "nothing bootstrapped": forward * REWARD[1] + (1 - forward) * REWARD[-1],
        "the behaviour's actions": true_values(np.full(STATES, 0.5)),
        "one action for all": true_values(np.ones(STATES)),
        "ends bootstrapped": true_values(forward, ends=False),
    }
    for name, values in broken.items():
        assert np.abs(truth - values).max() > 4 * TOLERANCE, name


def test_fits_with_one_seed_are_paired_and_leave_the_random_state_alone(
    data: OfflineDataset,
) -> None:
    before = torch.get_rng_state()
    first, second = (fit(data, chain_policy(SIGNS), updates=20, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.values(EVERY_STATE), second.values(EVERY_STATE))
    other = fit(data, chain_policy(SIGNS), updates=20, seed=4)
    assert not torch.equal(first.values(EVERY_STATE), other.values(EVERY_STATE))


def test_a_fit_that_was_cut_short_says_so(data: OfflineDataset) -> None:
    fitted = fit(data, chain_policy(SIGNS), updates=20, regression_updates=0)
    assert "not settled" in str(fitted.unsettled)
