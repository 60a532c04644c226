"""Units: those of actions, rewards and observations change nothing but what is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.data.scaling import denormalize_action, normalize_action
from rambo_trl.experiment.pretrained import dataset_digest

ROWS = 400


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((ROWS + 1, 3))
    return {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": rng.uniform(-1, 1, (ROWS, 2)),
        "rewards": rng.standard_normal(ROWS),
        "terminals": np.zeros(ROWS, bool),
        "timeouts": np.arange(ROWS) % 50 == 49,
    }


def load(low: Any = -1.0, high: Any = 1.0, **changes: Any) -> OfflineDataset:
    bounds = (torch.as_tensor(x, dtype=torch.float64).expand(2) for x in (low, high))
    spec = Bounded(*bounds, shape=(2,), dtype=torch.float64)
    options = {k: changes.pop(k) for k in ("reward_scale", "reward_shift") if k in changes}
    return OfflineDataset.from_arrays({**arrays(), **changes}, action_spec=spec, **options)


def from_file(folder: Path, **changes: np.ndarray) -> OfflineDataset:
    with h5py.File(folder / "log.hdf5", "w") as file:
        for key, value in {**arrays(), **changes}.items():
            file[key] = value
    return OfflineDataset.load(folder / "log.hdf5")


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 50_000.0), ([-1e-6, 3.0], [2e-6, 3.5]), (1e9, 1e9 + 1)]
)
def test_actions_of_any_unit_are_the_learners(low: Any, high: Any) -> None:
    want = arrays()["actions"]
    bounds = [np.broadcast_to(np.asarray(x, float), 2) for x in (low, high)]
    raw = bounds[0] + (want + 1) / 2 * (bounds[1] - bounds[0])
    data = load(low, high, actions=raw)
    got = data.transitions["action"]
    assert got.dtype == torch.float32 and data.action_spec == Bounded(-1.0, 1.0, shape=(2,))
    np.testing.assert_allclose(got.numpy(), want, atol=1e-6)
    back = data.denormalize_action(got).double().numpy()
    assert (np.abs(back - raw) <= 1e-6 * (bounds[1] - bounds[0])).all()
    torch.testing.assert_close(data.normalize_action(torch.as_tensor(raw)).float(), got)


def test_usual_bounds_change_no_bit() -> None:
    action = torch.rand(1000, 2) * 2 - 1
    low, high = -torch.ones(2), torch.ones(2)
    assert torch.equal(normalize_action(action, low, high), action)
    assert torch.equal(denormalize_action(action, low, high), action)


def test_rounding_keeps_actions_within_their_bounds() -> None:
    low, high = torch.tensor([0.1, -0.7]), torch.tensor([0.3, 1.1])
    ends = denormalize_action(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), low, high)
    assert (ends >= low).all() and (ends <= high).all()


@pytest.mark.parametrize("unit", [1e6, 1e-6, 1e20])
def test_rewards_of_any_unit_are_the_learners(unit: float) -> None:
    want = load(reward_scale="auto")
    got = load(rewards=unit * arrays()["rewards"], reward_scale="auto")
    torch.testing.assert_close(
        got.transitions["next", "reward"], want.transitions["next", "reward"]
    )
    assert got.reward_scale == pytest.approx(unit * want.reward_scale)
    np.testing.assert_allclose(got.behaviour_returns, unit * want.behaviour_returns)
    assert float(want.transitions["next", "reward"].square().mean()) == pytest.approx(1.0)


def test_reward_scale() -> None:
    raw = load().transitions["next", "reward"]
    assert load().reward_scale == 1
    data = load(reward_scale=4.0, reward_shift=-1.0)
    torch.testing.assert_close(data.transitions["next", "reward"], (raw - 1) / 4)
    assert load(rewards=np.zeros(ROWS), reward_scale="auto").reward_scale == 1
    with pytest.raises(ValueError, match="reward_scale must be auto or a positive number, got -1"):
        load(reward_scale=-1)


@pytest.mark.parametrize("unit", [1e-9, 1e-5, 1e7])
def test_observations_of_any_unit_are_the_learners(unit: float) -> None:
    scaled = {key: unit * arrays()[key] for key in ("observations", "next_observations")}
    got, want = load(**scaled).transitions, load().transitions
    for key in ("observation", ("next", "observation")):
        torch.testing.assert_close(got[key], want[key], rtol=1e-4, atol=1e-5)


class TestOffsets:
    """What changes little beside its offset: time stamps, map coordinates."""

    COLUMNS = {
        "unix": 1.7e9 + 0.05 * np.arange(ROWS + 1),
        "utm": 5e6 + 0.1 * np.arange(ROWS + 1),
        "int": 1_700_000_000 + np.arange(ROWS + 1),
    }

    def load(self, column: np.ndarray) -> OfflineDataset:
        return load(observations=column[:-1, None], next_observations=column[1:, None])

    @pytest.mark.parametrize("column", COLUMNS)
    def test_distinct_values_stay_so(self, column: str) -> None:
        values = self.COLUMNS[column]
        data = self.load(values)
        got = data.transitions["observation"]
        assert got.dtype == torch.float32 and len(got.unique()) == ROWS and not data.remarks
        want = (values - values[:-1].mean()) / values[:-1].std()
        np.testing.assert_allclose(got[:, 0].numpy(), want[:-1], atol=1e-5)
        np.testing.assert_allclose(
            data.transitions["next", "observation"][:, 0].numpy(), want[1:], atol=1e-5
        )
        back = data.denormalize(got).numpy()[:, 0]
        np.testing.assert_allclose(back, values[:-1], atol=1e-5 * values.std())
        raw = torch.as_tensor(values[:-1, None], dtype=torch.float64)
        torch.testing.assert_close(data.normalize(raw).float(), got)

    def test_from_files_too(self, tmp_path: Path) -> None:
        column = self.COLUMNS["utm"]
        states = np.stack([column, column], -1)
        data = from_file(tmp_path, observations=states[:-1], next_observations=states[1:])
        assert len(data.transitions["observation"][:, 0].unique()) == ROWS
        opened = data.memmap(tmp_path / "set")
        assert opened.observation_mean.dtype == torch.float64
        assert dataset_digest(opened) == dataset_digest(data)

    def test_a_file_with_next_observations_missing(self, tmp_path: Path) -> None:
        column = np.stack([self.COLUMNS["unix"], np.arange(ROWS + 1.0)], -1)
        states, ended = column[1:].copy(), np.arange(ROWS) == ROWS - 1
        states[-1] = np.nan
        data = from_file(
            tmp_path, observations=column[:-1], next_observations=states, terminals=ended
        )
        rows = data.transitions
        assert int(rows["next", "done"].sum()) == int(load().transitions["next", "done"].sum())
        torch.testing.assert_close(rows["next", "observation"][0], rows["observation"][1])

    def test_usual_data_stay_in_float32(self) -> None:
        data = load()
        assert data.observation_mean.dtype == data.action_low.dtype == torch.float32

    def test_what_is_lost_is_told(self) -> None:
        stamps = 1.7e9 + 10 * np.arange(ROWS + 1)
        early = self.load(stamps.astype(np.float32))  # lost before it came here
        assert "observation 0 is spread by" in early.remarks[0]
        wide = 1e13 + np.where(np.arange(ROWS + 1) % 2, 1e9, np.arange(ROWS + 1.0))
        assert "distinct values of observation 0 coincide in float32" in self.load(wide).remarks[0]
        rewards = 1e9 + arrays()["rewards"]
        assert "distinct values of reward coincide" in load(rewards=rewards).remarks[0]
        assert not load(rewards=rewards, reward_shift=-1e9).remarks  # as the remark advises


def test_a_memmap_folder_keeps_rewards_in_their_unit(tmp_path: Path) -> None:
    data = load(0, 10, actions=5 + 5 * arrays()["actions"], reward_scale="auto")
    opened = data.memmap(tmp_path / "set")
    assert opened.reward_scale == pytest.approx(data.reward_scale)
    for key in ("action", ("next", "reward")):
        torch.testing.assert_close(opened.transitions[key], data.transitions[key])
    raw = OfflineDataset.load(tmp_path / "set")
    assert raw.reward_scale == 1 and raw.action_high.tolist() == [10.0, 10.0]
    torch.testing.assert_close(
        raw.transitions["next", "reward"].squeeze(-1).double(),
        torch.as_tensor(arrays()["rewards"]),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip
