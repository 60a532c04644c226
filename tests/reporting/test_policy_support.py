"""What a policy does beside the log is counted right: on policies made for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.data.blocks import EpisodeBlocks
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.reporting.policy_support import action_use, distance_from_data, nearest

LENGTH = 50


def logged(episodes: int = 40) -> OfflineDataset:
    """A valve within 2 and 6 of 0 to 10 that follows a level, and a heater that is on or off."""
    torch.manual_seed(2)
    level = torch.rand(episodes * LENGTH, 1)
    other = torch.rand(episodes * LENGTH, 1)
    observation = torch.cat([level, other], dim=-1)
    heater = (torch.arange(episodes * LENGTH) % 4 == 0)[:, None].float()
    action = torch.cat([2 + 4 * level, heater], dim=-1)
    ended = torch.arange(episodes * LENGTH) % LENGTH == LENGTH - 1
    following = observation.roll(-1, dims=0)
    rows = TensorDict(
        observation=observation,
        action=action,
        next={
            "observation": following,
            "reward": torch.zeros(len(level)),
            "terminated": torch.zeros_like(ended),
            "truncated": ended,
        },
        batch_size=[len(level)],
    )
    spec = Bounded(torch.zeros(2), torch.tensor([10.0, 1.0]))
    return OfflineDataset(rows, action_spec=spec, action_names=("valve_pct", "heater"))


def controller(data: OfflineDataset, **changed: Any) -> Any:
    """The logged law of the valve, changed as said; the heater always at its limit."""

    def act(observation: Tensor) -> Tensor:
        level = data.denormalize(observation)[:, :1]
        valve = changed.get("offset", 0.0) + 2 + 4 * level
        action = torch.cat([valve.clamp(0, 10), torch.ones_like(valve)], dim=-1)
        return data.normalize_action(action)

    return act


def test_actions_are_counted_by_name_and_in_their_unit() -> None:
    data = logged()
    pieces = np.stack([np.arange(0, 500, LENGTH), np.arange(LENGTH, 501, LENGTH)], axis=1)
    found = action_use(data, controller(data, offset=2.0), pieces)
    level = data.denormalize(data.transitions["observation"])[:500, 0].double().numpy()
    valve, log = 4 + 4 * level, 2 + 4 * level
    every = 2 + 4 * data.denormalize(data.transitions["observation"])[:, 0].double().numpy()
    assert found["names"] == ["valve_pct", "heater"] and found["rows"] == 500
    assert (found["low"], found["high"]) == ([0.0, 0.0], [10.0, 1.0])
    assert found["logged_low"] == pytest.approx([every.min(), 0], abs=1e-4)
    assert found["logged_high"] == pytest.approx([every.max(), 1], abs=1e-4)
    assert found["outside"] == pytest.approx([(valve > every.max()).mean(), 0])
    low, high = np.quantile(every, [0.01, 0.99])
    assert found["rare"] == pytest.approx([((valve < low) | (valve > high)).mean(), 0])
    assert found["at_limit"] == [0.0, 1.0] and found["logged_at_limit"] == [0.0, 1.0]
    # not from one episode's last step to the next one's first
    inside = np.arange(1, 500) % LENGTH != 0
    change = np.abs(np.diff(valve))[inside].mean()
    assert found["change"] == pytest.approx([change, 0], rel=1e-4)
    heater = np.abs(np.diff((np.arange(500) % 4 == 0).astype(float)))[inside].mean()
    assert found["logged_change"] == pytest.approx(
        [np.abs(np.diff(log))[inside].mean(), heater], rel=1e-4
    )
    assert found["difference"] == pytest.approx([2.0, 0.75], rel=1e-4)


def test_the_nearest_is_a_tree_s() -> None:
    points, rows = torch.randn(300, 5), torch.randn(2000, 5)
    distance, number = nearest(points, rows)
    wanted, numbers = cKDTree(rows.numpy()).query(points.numpy())
    assert number.tolist() == numbers.tolist()
    assert distance.numpy() == pytest.approx(wanted / 5**0.5, rel=1e-4)


def test_the_log_s_own_actions_are_like_it_and_others_are_not() -> None:
    data = logged()
    blocks = EpisodeBlocks.of(data, gamma=0.9)

    def share(offset: float) -> float:
        act = controller(data, offset=offset)
        return distance_from_data(data, act, blocks)["actions"]

    assert share(0.0) < 0.05  # the heater is on in a quarter of the log's
    assert share(3.0) > 0.9
    assert set(distance_from_data(data, controller(data), blocks)) == {"logged", "own", "actions"}


def test_a_walk_off_the_data_is_seen_with_the_column_that_it_is_due_to() -> None:
    data = logged()
    blocks = EpisodeBlocks.of(data, gamma=0.9)
    model = EnsembleWorldModel(2, 2, num_members=3, num_elites=2, hidden_sizes=())

    def walk(by: float) -> dict[str, Any]:
        with torch.no_grad():
            model.weights[0].zero_()
            model.biases[0].zero_()
            model.biases[0][..., 1] = by  # standard deviations a step
            model.biases[0][..., 3:] = -30.0
            model.min_log_var.fill_(-30.0)
        env = EnsembleModelEnv(
            model,
            action_spec=data.action_spec,
            starts=data.transitions,
            termination=lambda x, a, y: y[..., 0] > 0.5,  # some end in their first step
            **data.statistics,
        )
        return distance_from_data(data, controller(data), blocks, env=env, model=model, horizon=20)

    still, moving = walk(0.0), walk(0.5)
    assert still["states"] < 0.05 and still["horizon"] == 20
    start = data.transitions["observation"][blocks.held_out_rows[:, 0]]
    going = float((data.denormalize(start)[:, 0] <= 0.5).double().mean())
    assert 0 < going < 1
    assert still["alive"] == pytest.approx([1.0] + [going] * 19)
    # the column is uniform: all are outside of it after its width, 12 ** 0.5 deviations
    assert moving["by_step"][0] < 0.1 and set(moving["by_step"][9:]) == {1.0}
    assert moving["columns"][1] > 0.9 and sum(moving["columns"]) == pytest.approx(1)
    alive, far = np.array(moving["alive"]), np.array(moving["by_step"])
    assert moving["states"] == pytest.approx((alive * far).sum() / alive.sum())
