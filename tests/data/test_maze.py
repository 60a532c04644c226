"""AntMaze and PointMaze: goals in the observation, success as the score, scripted data."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset, check_environment, make_environment
from rambo_trl.data.behaviour import PointMazeWaypoints, _next_cells
from rambo_trl.data.bundled import build_bundled
from rambo_trl.data.environment import is_maze, is_scored_by_success
from rambo_trl.data.scores import reference_scores_for


@pytest.mark.parametrize(
    ("env_id", "maze", "success"),
    [
        ("AntMaze_UMaze-v4", True, True),
        ("AntMaze_Large_Diverse_GR-v5", True, True),
        ("PointMaze_Medium-v3", True, True),
        ("gymnasium_robotics:PointMaze_Open-v3", True, True),
        ("PointMaze_UMazeDense-v3", True, False),
        ("AntMaze_Medium_Diverse_GDense-v4", True, False),
        ("Ant-v5", False, False),
        (None, False, False),
    ],
)
def test_which_are_mazes(env_id: str | None, maze: bool, success: bool) -> None:
    assert (is_maze(env_id), is_scored_by_success(env_id)) == (maze, success)
    if maze:
        assert reference_scores_for(env_id) == ((0.0, 1.0) if success else None)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)  # importing it fails
    with pytest.raises(ValueError, match=r'not installed .*pip install "rambo_trl\[maze\]"'):
        make_environment("AntMaze_Nowhere-v4")


def test_success_counts_not_the_steps_at_the_goal() -> None:
    rewards = [[0, 0, 0], [0, 1, 1], [0, 0, 1]]
    episodes = [
        {
            "observations": np.random.default_rng(i).normal(size=(4, 6)),
            "actions": np.zeros((3, 2), np.float32),
            "rewards": np.array(row, dtype=float),
            "terminations": np.zeros(3, bool),
            "truncations": np.array([False, False, True]),
        }
        for i, row in enumerate(rewards)
    ]
    spec = Bounded(-1, 1, shape=(2,))
    data = OfflineDataset.from_episodes(
        episodes, action_spec=spec, env_id="PointMaze_UMaze-v3", reward_shift=-1.0
    )
    assert data.behaviour_returns.tolist() == [0, 1, 1]
    assert data.behaviour_score == pytest.approx(200 / 3)
    # training sees the paper's rewards
    assert data.transitions["next", "reward"].squeeze(-1).tolist() == [
        r - 1 for row in rewards for r in row
    ]


def test_the_shortest_way() -> None:
    maze = [[1, 1, 1, 1], [1, "r", 0, 1], [1, 1, 0, 1], [1, "g", 0, 1], [1, 1, 1, 1]]
    table = _next_cells(maze)
    cell, way = (1, 1), [(1, 1)]
    while cell != (3, 1):
        cell = table[cell, (3, 1)]
        way.append(cell)
    assert way == [(1, 1), (1, 2), (2, 2), (3, 2), (3, 1)]


class TestSimulated:
    @pytest.fixture(autouse=True)
    def needs_the_package(self) -> None:
        pytest.importorskip("gymnasium_robotics")

    def test_an_episode_ends_at_the_goal_with_return_1(self) -> None:
        env = make_environment("PointMaze_UMaze-v3")
        player = PointMazeWaypoints("PointMaze_UMaze-v3", noise=0.0)
        for seed in range(3):
            observation, _ = env.reset(seed=seed)
            total, ended = 0.0, False
            while not ended:
                x = np.concatenate([observation["observation"], observation["desired_goal"]])
                observation, reward, terminated, truncated, info = env.step(player(x[None])[0])
                total, ended = total + float(reward), terminated or truncated
            assert terminated and not truncated and info["success"] and total == 1.0
        env.close()

    @pytest.mark.parametrize(
        ("name", "sizes"),
        [("pointmaze-umaze/waypoint", (6, 2)), ("antmaze-umaze/random", (31, 8))],
    )
    def test_the_bundled_sets(self, name: str, sizes: tuple[int, int], minari_root: Path) -> None:
        build_bundled(f"bundled/{name}-v0", num_steps=300, progress=False)
        data = OfflineDataset.load(f"bundled/{name}-v0", reward_shift=-1.0)
        assert (data.observation_size, data.action_size) == sizes
        # episodes end at the goal, and those that did are the score
        reached = int(data.transitions["next", "terminated"].sum())
        assert data.behaviour_score == pytest.approx(100 * reached / data.num_episodes)
        if "waypoint" in name:
            assert data.behaviour_score == 100
        assert set(data.transitions["next", "reward"].unique().tolist()) <= {-1.0, 0.0}
        assert data.env_spec.kwargs["continuing_task"] is False
        check_environment(data)
        # the goal stays for an episode: it is in the observation
        goal = data.denormalize(data.transitions["observation"])[:, -2:]
        stays = ~data.transitions["next", "done"].squeeze(-1)[:-1]
        assert torch.allclose(goal[:-1][stays], goal[1:][stays], atol=1e-3)
