"""Termination rules: both sides of every bound, and the simulators' own word."""

from __future__ import annotations

import math
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from rambo_trl.envs import termination

SIZES = {"hopper": (11, 3), "walker2d": (17, 6), "ant": (27, 8), "inverted_double_pendulum": (9, 1)}
HEALTHY = {
    "hopper": {0: 1.2},
    "walker2d": {0: 1.2},
    "ant": {0: 0.6},
    "inverted_double_pendulum": {3: 1.0, 4: 1.0},
}
NAN, INF = math.nan, math.inf


def pendulum(first: float, second: float) -> dict[int, float]:
    """Entries of the double pendulum's observation at two joint angles."""
    return {
        1: math.sin(first),
        2: math.sin(second),
        3: math.cos(first),
        4: math.cos(second),
    }


# the tip is 0.6 (cos(first) + cos(first + second)) high; upright after a tilt of both joints
# at which the tip stands at exactly 1: first = t, second = -2 t, 1.2 cos(t) = 1
TILT = math.acos(1 / 1.2)

CASES = [
    # rule, entries that differ from a healthy state, whether it ends
    ("hopper", {}, False),
    ("hopper", {0: 0.7001}, False),
    ("hopper", {0: 0.6999}, True),
    ("hopper", {0: 150.0}, False),  # the height has no upper bound, nor the other entries' one
    ("hopper", {1: 0.1999}, False),
    ("hopper", {1: 0.2001}, True),
    ("hopper", {1: -0.1999}, False),
    ("hopper", {1: -0.2001}, True),
    *[("hopper", {i: s * 99.9}, False) for i in range(2, 11) for s in (-1, 1)],
    *[("hopper", {i: s * 100.1}, True) for i in range(2, 11) for s in (-1, 1)],
    *[("hopper", {i: bad}, True) for i in range(11) for bad in (NAN, INF, -INF)],
    ("walker2d", {}, False),
    ("walker2d", {0: 0.8001}, False),
    ("walker2d", {0: 0.7999}, True),
    ("walker2d", {0: 1.9999}, False),
    ("walker2d", {0: 2.0001}, True),
    ("walker2d", {1: 0.9999}, False),
    ("walker2d", {1: 1.0001}, True),
    ("walker2d", {1: -0.9999}, False),
    ("walker2d", {1: -1.0001}, True),
    ("walker2d", {5: 500.0}, False),
    ("walker2d", {0: NAN}, True),
    ("ant", {}, False),
    ("ant", {0: 0.2001}, False),
    ("ant", {0: 0.1999}, True),
    ("ant", {0: 0.9999}, False),
    ("ant", {0: 1.0001}, True),
    ("ant", {0: 0.2}, False),  # the bounds themselves are healthy
    ("ant", {0: 1.0}, False),
    *[("ant", {i: bad}, True) for i in (0, 13, 26) for bad in (NAN, INF, -INF)],
    ("inverted_double_pendulum", {}, False),
    ("inverted_double_pendulum", pendulum(TILT - 1e-3, -2 * (TILT - 1e-3)), False),
    ("inverted_double_pendulum", pendulum(TILT + 1e-3, -2 * (TILT + 1e-3)), True),
    ("inverted_double_pendulum", pendulum(-TILT + 1e-3, 2 * (TILT - 1e-3)), False),
    ("inverted_double_pendulum", pendulum(-TILT - 1e-3, 2 * (TILT + 1e-3)), True),
    # the second pole alone: 0.6 + 0.6 cos(second) = 1 at cos(second) = 2 / 3
    ("inverted_double_pendulum", pendulum(0.0, math.acos(2 / 3) - 1e-3), False),
    ("inverted_double_pendulum", pendulum(0.0, math.acos(2 / 3) + 1e-3), True),
    # both poles in line, leaning by the same tilt
    ("inverted_double_pendulum", pendulum(TILT - 1e-3, 0.0), False),
    ("inverted_double_pendulum", pendulum(TILT + 1e-3, 0.0), True),
    ("inverted_double_pendulum", pendulum(math.pi, math.pi), True),
    ("inverted_double_pendulum", {3: NAN}, True),
]


def state(rule: str, entries: dict[int, float]) -> Tensor:
    out = torch.zeros(SIZES[rule][0], dtype=torch.float64)
    for i, value in (HEALTHY[rule] | entries).items():
        out[i] = value
    return out


@pytest.mark.parametrize(("rule", "entries", "ends"), CASES)
def test_rule_on_both_sides_of_each_bound(rule: str, entries: dict, ends: bool) -> None:
    action_size = SIZES[rule][1]
    healthy, following = state(rule, {}), state(rule, entries)
    function = getattr(termination, rule)
    action = torch.zeros(action_size, dtype=torch.float64)
    assert function(healthy, action, following).item() is ends
    # what was before does not matter
    assert function(state(rule, {0: -5.0}), action, following).item() is ends


@pytest.mark.parametrize("rule", SIZES)
def test_rules_take_any_batch_shape(rule: str) -> None:
    function = getattr(termination, rule)
    rows = state(rule, {}).expand(2, 3, -1).clone()
    rows[1, 2] = math.nan
    got = function(rows, torch.zeros(2, 3, SIZES[rule][1]), rows)
    assert got.dtype == torch.bool
    assert got.tolist() == [[False] * 3, [False, False, True]]


@pytest.mark.parametrize(
    ("env_id", "episodes"),
    [
        ("Hopper-v5", 30),
        ("Walker2d-v5", 30),
        ("InvertedDoublePendulum-v5", 60),
        ("Ant-v5", 8),
        ("HalfCheetah-v5", 1),
    ],
)
def test_agrees_with_the_simulator_on_every_step(
    env_id: str, episodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves a log file where it runs
    env = gymnasium.make(env_id, max_episode_steps=300)
    env.action_space.seed(0)
    before, actions, after, ends = [], [], [], []
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        terminated = truncated = False
        while not (terminated or truncated):
            action = env.action_space.sample()
            following, _, terminated, truncated, _ = env.step(action)
            before.append(observation)
            actions.append(action)
            after.append(following)
            ends.append(terminated)
            observation = following
    env.close()
    arrays = (torch.as_tensor(np.stack(x)).float() for x in (before, actions, after))
    got = termination.rule_for(env.spec.id)(*arrays)
    assert got.tolist() == ends
    if env_id != "HalfCheetah-v5":
        assert any(ends)
        assert not all(ends)


def test_unknown_environments_are_named_with_a_way_out() -> None:
    with pytest.raises(KeyError) as error:
        termination.rule_for("Chess-v1")
    message = str(error.value)
    assert "Chess-v1" in message
    assert "Hopper" in message
    assert "termination=" in message


@pytest.mark.parametrize(
    ("env_id", "rule"),
    [
        ("Hopper-v2", termination.hopper),
        ("my_module:Hopper-v4", termination.hopper),
        ("Ant-v5", termination.ant),
        ("AntMaze_UMaze-v4", termination.never),
        ("my_module:PointMaze_Large-v3", termination.never),
    ],
)
def test_rules_hold_for_every_version(env_id: str, rule: termination.TerminationRule) -> None:
    assert termination.rule_for(env_id) is rule
    for ends in (torch.zeros(4) > 0, torch.ones(4) > 0):  # whatever the data
        assert termination.choose_rule("auto", env_id=env_id, terminated=ends) is rule
