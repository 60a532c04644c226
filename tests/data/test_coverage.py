"""How much of the space data cover, on data whose spread is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.data.report import Coverage, describe_dataset, measure_coverage

ROWS = 20_000


def measure(observation: np.ndarray, action: np.ndarray, *, normalize: bool = True) -> Coverage:
    return measure_coverage(dataset(observation, action, normalize=normalize))


def dataset(observation: np.ndarray, action: np.ndarray, *, normalize: bool) -> OfflineDataset:
    rows = len(observation)
    following = TensorDict(
        observation=torch.from_numpy(observation.astype(np.float32)),
        reward=torch.arange(rows, dtype=torch.float32),
        terminated=torch.zeros(rows, dtype=torch.bool),
        batch_size=[rows],
    )
    transitions = TensorDict(
        observation=following["observation"].clone(),
        action=torch.from_numpy(action.astype(np.float32)),
        next=following,
        batch_size=[rows],
    )
    low, high = torch.tensor([-1.0, 0.0, 5.0]), torch.tensor([1.0, 10.0, 6.0])
    return OfflineDataset(
        transitions,
        action_spec=Bounded(low, high, shape=(3,)),
        normalize=normalize,
    )


def made() -> tuple[np.ndarray, np.ndarray]:
    """Four free entries, the first three times more, one constant; uniform, half, one value."""
    rng = np.random.default_rng(0)
    free = rng.normal(size=(ROWS, 4)) * [1, 1e-2, 100, 1] + 50
    first = free[:, :1]
    still = np.full((ROWS, 1), 7.0)
    observation = np.column_stack([free, 3 * first, -first, first, still])
    action = np.column_stack(
        [rng.uniform(-1, 1, ROWS), rng.uniform(0, 5, ROWS), np.full(ROWS, 5.5)]
    )
    return observation, action


@pytest.mark.parametrize("normalize", [True, False])
def test_known_spreads(normalize: bool) -> None:
    found = measure(*made(), normalize=normalize)
    np.testing.assert_allclose(found.actions, [1.0, 0.5, 1 / 20], atol=0.01)
    # eigenvalues 4, 1, 1, 1 and zeros: (4 + 3)^2 / (16 + 3)
    assert found.directions == pytest.approx(49 / 19, abs=0.03)
    assert found.variance == pytest.approx(5 / 7, abs=0.01)
    assert found.plane.shape == (ROWS, 2)
    # the entries that move together, whatever the sign
    together = np.corrcoef(found.plane[:, 0], made()[0][:, 0])[0, 1]
    assert abs(together) == pytest.approx(1, abs=1e-3)


def test_more_data_of_the_same_kind_cover_no_more() -> None:
    observation, action = made()
    once, twice = measure(observation, action), measure(*(np.tile(x, (2, 1)) for x in made()))
    np.testing.assert_allclose(once.actions, twice.actions)
    assert once.directions == pytest.approx(twice.directions, abs=1e-3)


def test_states_that_never_change() -> None:
    found = measure(np.full((50, 1), 3.0), made()[1][:50])
    assert found.directions == 0 and found.variance == 0 and found.plane.shape == (50, 1)


def test_the_report_tells_it() -> None:
    text = describe_dataset(dataset(*made(), normalize=True))
    assert "actions as if spread evenly over 52 % of their bounds, action 2 over 5 %" in text
    assert "states as if spread evenly over 2.6 of their 8 directions" in text
