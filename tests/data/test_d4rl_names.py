"""What the names of D4RL's files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from rambo_trl.data.names import parse_d4rl_name


@pytest.mark.parametrize(
    ("name", "env_id", "limit"),
    [
        ("hopper_medium_replay-v2", "Hopper-v5", 1000),
        ("hopper-medium-replay-v2", "Hopper-v5", 1000),
        ("halfcheetah_medium_expert-v0", "HalfCheetah-v5", 1000),
        ("walker2d_full_replay-v2", "Walker2d-v5", 1000),
        ("ant_random", "Ant-v5", 1000),
        ("antmaze-umaze-diverse-v2", "AntMaze_UMaze-v4", 700),
        (
            "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse",
            "AntMaze_Large-v4",
            1000,
        ),
        ("hopper_of_ours", None, None),
        ("antelope_medium-v2", None, None),
        ("my_hopper_medium-v2", None, None),
    ],
)
def test_names(name: str, env_id: str | None, limit: int | None) -> None:
    parsed = parse_d4rl_name(Path(f"/somewhere/{name}.hdf5"))
    assert (parsed and parsed.env_id, parsed and parsed.max_episode_steps) == (env_id, limit)
