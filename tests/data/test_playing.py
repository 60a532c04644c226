"""Environments that cannot be evaluated in are refused before any work; the others are played."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
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


def returning(*changes: tuple[int, Any], **attributes: Any) -> type[Plain]:
    """An environment of which a step returns other values at some places."""

    def step(self: Plain, action: Any) -> Any:
        result = list(Plain.step(self, action))
        for place, value in changes:
            result[place] = value
        return tuple(result)

    return type("Changed", (Plain,), {"step": step, **attributes})


def bare_reset(self: Plain, *, seed: int | None = None, options: Any = None) -> Any:
    return self.observation_space.sample()


def fails(self: Plain, action: Any) -> Any:
    raise RuntimeError("the bus\nis down")


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


PART = Box(-9, 9, (1,))
GOAL = Dict(observation=Box(-9, 9, (2,)), desired_goal=PART, achieved_goal=PART)
ENVIRONMENTS: dict[str, type[Plain]] = {
    "OldReset": returning(reset=lambda self: self.observation_space.sample()),
    # two numbers pass for an observation and an info
    "BareReset": returning(observation_space=Box(-9, 9, (2,)), reset=bare_reset),
    "OldStep": returning(step=lambda self, action: Plain.step(self, action)[:4]),
    "ArrayReward": returning((1, np.array([1.0]))),
    "TwoRewards": returning((1, np.ones(2))),
    "NoReward": returning((1, float("nan"))),
    "Column": returning(observation_space=Box(-9, 9, (3, 1))),
    "Goal": returning(observation_space=GOAL),
    "Short": returning(reset=lambda self, **_: (np.zeros(2), {})),  # than it says
    "NotFinite": returning((0, np.full(3, np.nan))),
    "Fails": returning(step=fails),
    "Endless": returning(),
    "Falls": returning((2, True)),  # no limit: a better policy may never meet its end
    "Counts": Counts,
    "Rows": Rows,
    # begins with whole numbers
    "Whole": returning((0, np.full(3, 0.5)), reset=lambda self, **_: (np.array([0, 0, 0]), {})),
}


@pytest.fixture
def registered() -> Iterator[None]:
    for name, one in ENVIRONMENTS.items():
        limit = None if name in ("Endless", "Falls", "Counts") else 5
        gymnasium.register(f"{name}-v0", one, max_episode_steps=limit)
    yield
    for name in ENVIRONMENTS:
        del gymnasium.registry[f"{name}-v0"]


def data(name: str, **options: Any) -> OfflineDataset:
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
        **options,
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
    check_environment(data("Endless", max_episode_steps=3))


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


MODULE = """
import gymnasium

class Still(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

gymnasium.register("Still-v0", Still, max_episode_steps=7)
"""


def test_the_module_that_registers_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_still_envs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    try:
        env = make_environment("my_still_envs:Still-v0")
        assert env.observation_space.shape == (2,)
        assert env.spec is not None and env.spec.max_episode_steps == 7
        with pytest.raises(ValueError, match="my_still_envs:Other-v0 is not installed"):
            make_environment("my_still_envs:Other-v0")
    finally:
        gymnasium.registry.pop("Still-v0", None)
        sys.modules.pop("my_still_envs", None)
    assert sys.path == path


def test_a_module_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_broken_envs.py").write_text("1 / 0")
    for module, words in (("my_broken_envs", "division"), ("my_missing_envs", "No module named")):
        with pytest.raises(ValueError, match=f"{module} cannot be imported .*{words}") as caught:
            make_environment(f"{module}:Still-v0")
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
