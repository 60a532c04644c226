"""Environments that cannot be evaluated in are refused before any work; the others are played."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict

from rambo_trl.data import OfflineDataset, check_environment, make_environment
from rambo_trl.data.playing import flattening, play_start, play_step
from rambo_trl.experiment.evaluation import evaluate_policy
from rambo_trl.modules import make_actor


class Plain(gymnasium.Env):
    """Three numbers, two actions, a reward of 1 a step."""

    observation_space: Any = Box(-9, 9, (3,))
    action_space: Any = Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 1.0, False, False, {}


class OldReset(Plain):
    def reset(self) -> Any:  # type: ignore[override]
        return self.observation_space.sample()


class BareReset(Plain):
    observation_space = Box(-9, 9, (2,))  # two numbers pass for an observation and an info

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.sample()


class OldStep(Plain):
    def step(self, action: Any) -> Any:
        observation, reward, *_ = super().step(action)
        return observation, reward, False, {}


class ArrayReward(Plain):
    def step(self, action: Any) -> Any:
        return (self.observation_space.sample(), np.array([1.0]), *super().step(action)[2:])


class TwoRewards(Plain):
    def step(self, action: Any) -> Any:
        return (self.observation_space.sample(), np.ones(2), *super().step(action)[2:])


class NoReward(Plain):
    def step(self, action: Any) -> Any:
        return (self.observation_space.sample(), float("nan"), *super().step(action)[2:])


class Column(Plain):
    observation_space = Box(-9, 9, (3, 1))


class Goal(Plain):
    part = Box(-9, 9, (1,))
    observation_space = Dict(observation=Box(-9, 9, (2,)), desired_goal=part, achieved_goal=part)


class Short(Plain):
    """Gives another size than it says."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2), {}


class NotFinite(Plain):
    def step(self, action: Any) -> Any:
        return (np.full(3, np.nan), *super().step(action)[1:])


class Fails(Plain):
    def step(self, action: Any) -> Any:
        raise RuntimeError("the bus\nis down")


class Endless(Plain):
    pass


class Falls(Plain):
    """An end of its own is no limit: a better policy may never meet it."""

    def step(self, action: Any) -> Any:
        return (*super().step(action)[:2], True, False, {})


class Counts(Plain):
    """Truncates its episodes itself."""

    def reset(self, **settings: Any) -> Any:
        self.left = 5
        return super().reset(**settings)

    def step(self, action: Any) -> Any:
        self.left -= 1
        return (*super().step(action)[:3], self.left == 0, {})


class Rows(Plain):
    """Takes actions in two rows of double precision, and none beyond its bounds."""

    action_space = Box(-0.1, 0.1, (2, 1), np.float64)

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return super().step(action)


class Whole(Plain):
    """Begins with whole numbers."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.array([0, 0, 0]), {}

    def step(self, action: Any) -> Any:
        return (np.full(3, 0.5), *super().step(action)[1:])


@pytest.fixture
def registered() -> Iterator[None]:
    classes = set(Plain.__subclasses__())
    for one in classes:
        limit = None if one in (Endless, Falls, Counts) else 5
        gymnasium.register(f"{one.__name__}-v0", one, max_episode_steps=limit)
    yield
    for one in classes:
        del gymnasium.registry[f"{one.__name__}-v0"]


def data(name: str) -> OfflineDataset:
    rng = np.random.default_rng(0)
    size = 2 if name == "BareReset" else 3
    states = rng.normal(size=(21, size))
    return OfflineDataset.from_arrays(
        {
            "observations": states[:-1],
            "next_observations": states[1:],
            "actions": rng.uniform(-0.1, 0.1, (20, 2)),
            "rewards": rng.normal(size=20),
            "terminals": np.zeros(20),
        },
        env_id=f"{name}-v0",
    )


INTERFACE = r"Gymnasium's interface is reset\(seed=, options=\) -> "


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("OldReset", r"reset\(seed=0\) fails .*TypeError.*'seed'.*" + INTERFACE),
        ("BareReset", r"reset\(\) must return \(observation, info\)"),
        ("OldStep", r"step\(\) with float32 actions fails .*not enough values.*" + INTERFACE),
        ("TwoRewards", r"a reward must be one number, got the shape \(2,\)"),
        ("NoReward", "a reward is not finite: nan"),
        ("Short", r"of shape \(3,\) is expected, got \(2,\)"),
        ("NotFinite", r"an observation is not finite: \[nan nan nan\]"),
        ("Fails", "RuntimeError: the bus is down"),
        ("Endless", "no time limit .* in 10000 steps, .* register it with max_episode_steps="),
        ("Falls", "no time limit .* in 10000 steps, .* register it with max_episode_steps="),
    ],
)
def test_what_cannot_be_evaluated_is_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"evaluated in {name}-v0: .*{words}") as caught:
        check_environment(data(name))
    assert "\n" not in str(caught.value) and "env_id=none to go without" in str(caught.value)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["ArrayReward", "Column", "Goal", "Counts", "Rows", "Whole"])
def test_what_passes_is_evaluated(name: str) -> None:
    found = data(name)
    check_environment(found)
    assert found.environment is not None
    actor = make_actor(3, found.action_spec, hidden_sizes=(4,))
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(1e4)  # at the bounds
    result = evaluate_policy(
        actor,
        found.environment,
        num_episodes=2,
        action_low=found.action_low,
        action_high=found.action_high,
    )
    assert result.returns.tolist() == [5, 5]


@pytest.mark.usefixtures("registered")
def test_a_limit_that_is_given_with_the_data_is_enough() -> None:
    arrays = {
        "observations": np.random.default_rng(0).normal(size=(6, 3)),
        "actions": np.zeros((6, 2), np.float32),
        "rewards": np.arange(6.0),
        "terminals": np.zeros(6),
    }
    check_environment(OfflineDataset.from_arrays(arrays, env_id="Endless-v0", max_episode_steps=3))


@pytest.mark.usefixtures("registered")
def test_no_number_is_drawn_and_the_first_observation_is_no_pattern() -> None:
    state = np.random.get_state()[1].tolist(), torch.get_rng_state()
    check_environment(data("Whole"))
    assert np.random.get_state()[1].tolist() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    env = make_environment("Whole-v0")
    flatten = flattening(env)
    assert play_start(env, flatten, seed=0).dtype.kind == "f"
    following, *_ = play_step(env, np.zeros(2, np.float32), flatten)
    assert following.tolist() == [0.5] * 3
