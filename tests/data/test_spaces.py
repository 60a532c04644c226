"""Observations of any shape, goals, images, discrete actions; the environment's fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torchrl._utils import logger
from torchrl.data import Bounded

from rambo_trl.data import ObservationLayout, OfflineDataset, check_environment
from rambo_trl.data.report import describe_dataset

ANY = {"low": -np.inf, "high": np.inf, "dtype": np.float64}
GOAL_SPACE = spaces.Dict(
    {
        "achieved_goal": spaces.Box(shape=(2,), **ANY),
        "desired_goal": spaces.Box(shape=(2,), **ANY),
        "observation": spaces.Box(shape=(4,), **ANY),
    }
)


def episode(observations: Any, actions: Any = None, steps: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "observations": observations,
        "actions": np.float32(rng.uniform(-1, 1, (steps, 2))) if actions is None else actions,
        "rewards": rng.normal(size=steps),
        "terminations": np.zeros(steps, bool),
        "truncations": np.arange(steps) == steps - 1,
    }


def rows(observation: torch.Tensor, action: torch.Tensor) -> TensorDict:
    following = {"observation": observation, "reward": torch.zeros(4),
                 "terminated": torch.zeros(4, dtype=torch.bool)}  # fmt: skip
    return TensorDict(observation=observation, action=action, next=following, batch_size=[4])


def goal_observations(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {key: rng.normal(size=(5, *space.shape)) for key, space in GOAL_SPACE.items()}


def test_boxes_of_any_shape_are_flattened(store: Callable[..., Path]) -> None:
    values = np.random.default_rng(0).normal(size=(5, 2, 3))
    actions = np.random.default_rng(1).uniform(-1, 1, size=(4, 1, 2)).astype(np.float32)
    store("toy/matrix-v0", episode(values, actions))
    data = OfflineDataset.load("toy/matrix-v0", normalize=False)
    want = values.astype(np.float32).reshape(5, 6)
    np.testing.assert_array_equal(data.transitions["observation"].numpy(), want[:-1])
    np.testing.assert_array_equal(data.transitions["next", "observation"].numpy(), want[1:])
    np.testing.assert_array_equal(data.transitions["action"].numpy(), actions[:, 0])
    assert data.action_spec.shape == (2,) and data.observation_size == 6
    assert data.observation_layout is not None
    np.testing.assert_array_equal(data.observation_layout.flatten(values[0]), values[0].ravel())

    td = rows(torch.from_numpy(values[:-1]), torch.from_numpy(actions))
    td["next"] = data.transitions["next"].clone()
    td["next", "observation"] = torch.from_numpy(values[1:])
    flat = OfflineDataset(td, action_spec=Bounded(-1, 1, shape=(1, 2)), normalize=False)
    assert (flat.transitions == data.transitions).all()


def test_goal_is_joined_to_the_observation(store: Callable[..., Path]) -> None:
    observations = goal_observations(np.random.default_rng(0))
    store("toy/goal-v0", episode(observations), observation_space=GOAL_SPACE)
    data = OfflineDataset.load("toy/goal-v0", normalize=False)
    want = np.concatenate([observations["observation"], observations["desired_goal"]], axis=1)
    np.testing.assert_array_equal(data.transitions["observation"].numpy(), np.float32(want)[:-1])
    layout = data.observation_layout
    assert layout is not None and layout.keys == ("observation", "desired_goal")
    one = {key: value[0] for key, value in observations.items()}
    np.testing.assert_array_equal(layout.flatten(one), want[0])  # as at evaluation
    chosen = OfflineDataset.load("toy/goal-v0", observation_keys=["desired_goal"])
    assert chosen.observation_size == 2
    with pytest.raises(ValueError, match=r"observation_keys=\('goal',\) must be entries"):
        OfflineDataset.load("toy/goal-v0", observation_keys=["goal"])


def test_ant_mazes_position_is_kept() -> None:
    # Gymnasium-Robotics takes x and y out of "observation"; without them there is no task.
    layout = ObservationLayout.of(GOAL_SPACE, name="x", env_id="AntMaze_UMaze-v4")
    assert layout.keys == ("achieved_goal", "observation", "desired_goal") and layout.size == 8
    other = ObservationLayout.of(GOAL_SPACE, name="x", env_id="PointMaze_UMaze-v3")
    assert other.keys == ("observation", "desired_goal") and other.size == 6


@pytest.mark.parametrize(
    ("space", "match"),
    [
        (spaces.Box(0, 255, (64, 64, 3), np.uint8), "observations of shape .* are images"),
        (
            spaces.Dict({"observation": spaces.Box(0, 255, (8, 8, 3), np.uint8)}),
            r"observations\['observation'\] of shape .* are images",
        ),
        (spaces.Discrete(4), "Discrete observations"),
        (spaces.Tuple([spaces.Box(-1, 1)]), "Tuple observations"),
        (spaces.Dict({"camera": spaces.Box(-1, 1)}), "give observation_keys="),
        (spaces.Dict({"observation": spaces.Discrete(3)}), "Discrete observations"),
    ],
)
def test_observations_that_are_no_real_vectors(space: spaces.Space, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ObservationLayout.of(space, name="toy")
    with pytest.raises(ValueError, match="leave out observation_keys"):
        ObservationLayout.of(spaces.Box(-1, 1), name="toy", keys=["observation"])


@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (spaces.Discrete(3), np.zeros(4, np.int64)),
        (spaces.MultiDiscrete([3, 3]), np.zeros((4, 2), np.int64)),
        (spaces.Box(0, 5, (2,), np.int64), np.zeros((4, 2), np.int64)),
    ],
)
def test_discrete_actions_are_refused(
    space: spaces.Space, actions: np.ndarray, store: Callable[..., Path]
) -> None:
    given = episode(np.random.default_rng(0).normal(size=(5, 3)), actions)
    store("toy/discrete-v0", given, action_space=space)
    with pytest.raises(ValueError, match="toy/discrete-v0 has .*actions.* needs a"):
        OfflineDataset.load("toy/discrete-v0")
    spec = Bounded(-1, 1, shape=(2,))
    with pytest.raises(ValueError, match="discrete actions"):
        OfflineDataset(rows(torch.zeros(4, 3), torch.from_numpy(actions)), action_spec=spec)
    with pytest.raises(ValueError, match="discrete actions"):
        OfflineDataset.from_episodes([given], action_spec=spec)
    images = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="are images"):
        OfflineDataset(rows(images, torch.zeros(4, 2)), action_spec=spec)


def test_flatten_refuses_other_shapes() -> None:
    layout = ObservationLayout.of(spaces.Box(shape=(2, 3), **ANY), name="toy")
    assert layout.flatten(np.zeros((7, 5, 2, 3))).shape == (7, 5, 6)
    with pytest.raises(ValueError, match=r"shape \(2, 3\) is expected, got \(3, 2\)"):
        layout.flatten(np.zeros((3, 2)))
    goal = ObservationLayout.of(GOAL_SPACE, name="toy")
    with pytest.raises(ValueError, match="dictionary with the entries"):
        goal.flatten({"observation": np.zeros(4)})


@pytest.fixture
def data() -> OfflineDataset:
    observations = np.random.default_rng(0).normal(size=(5, 11))
    actions = np.random.default_rng(1).uniform(-1, 1, size=(4, 3))
    return OfflineDataset.from_episodes(
        [episode(observations, actions)], action_spec=Bounded(-1, 1, shape=(3,))
    )


@pytest.mark.parametrize(
    ("env_id", "match"),
    [
        (None, "names no environment"),
        ("AntMaze_Nowhere-v4", "not installed.*gymnasium-robotics"),
        ("Nowhere-v0", "Nowhere-v0 is not installed"),
        ("Walker2d-v5", "observations of size 11 in the data and 17 in the environment"),
        ("Reacher-v5", "observations of size 11 in the data and 10|actions of size"),
    ],
)
def test_an_environment_that_does_not_fit(
    data: OfflineDataset, env_id: str | None, match: str
) -> None:
    data.env_id = env_id
    with pytest.raises(ValueError, match=match) as caught:
        check_environment(data)
    assert "\n" not in str(caught.value)


class Arms(gymnasium.Env):
    """Actions of one row of two entries, or a choice."""

    observation_space = gymnasium.spaces.Box(-9, 9, (3,))

    def __init__(self, choice: bool = False) -> None:
        box = gymnasium.spaces.Box(-1, 1, (1, 2))
        self.action_space = gymnasium.spaces.Discrete(2) if choice else box

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(3), {}

    def step(self, action: Any) -> Any:
        assert action.shape == (1, 2)
        return np.zeros(3), 0.0, False, True, {}


@pytest.mark.parametrize(("size", "choice"), [(2, False), (3, False), (1, True), (2, True)])
def test_actions_are_compared_as_they_are_in_the_data_flattened(
    size: int, choice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = gymnasium.envs.registration.EnvSpec("Arms-v0", Arms, kwargs={"choice": choice})
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    rng = np.random.default_rng(0)
    given = episode(rng.normal(size=(5, 3)), rng.uniform(-1, 1, size=(4, 1, size)))
    bounds = Bounded(-1, 1, shape=(1, size))
    data = OfflineDataset.from_episodes([given], action_spec=bounds, env_id="Arms-v0")
    if size == 2 and not choice:
        check_environment(data)
        return
    with pytest.raises(ValueError, match=f"actions of size {size} in the data and .*env_id=none"):
        check_environment(data)


def test_an_environment_that_fits(
    data: OfflineDataset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.env_id = "Hopper-v5"
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    check_environment(data)
    assert "Hopper-v5" in gymnasium.registry and not caplog.records
    # a policy for half the bounds is half as strong there: possible, but to be told
    data.action_low, data.action_high = torch.full((3,), -0.5), torch.full((3,), 0.5)
    check_environment(data)
    assert "between [-1.0, -1.0, -1.0] and [1.0, 1.0, 1.0] in Hopper-v5" in caplog.text
    assert "note" in describe_dataset(data) and "in other units" in describe_dataset(data)
