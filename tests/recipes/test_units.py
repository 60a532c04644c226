"""Whole runs on data that differ by their units only: what is learnt is the same."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.data import Bounded

from rambo_trl import load_policy
from rambo_trl.data import OfflineDataset
from rambo_trl.export import export_policy

pytestmark = pytest.mark.usefixtures("brief_ending")
METHODS = ("rambo", "mopo", "mobile", "iql", "cql", "combo", "td3_bc", "rebrac", "bc")
#: kinds of units: of actions (a heater's 0 to 50 kW), and of rewards
UNITS = {"plain": (1.0, 0.0, 1.0), "watts": (25_000.0, 25_000.0, 1.0), "cents": (1.0, 0.0, 1e6)}
WORDS = ("schedule=smoke", "agent_updates=15")
#: and those of the methods with a model, and of the adversary
WITH_MODEL = (
    "termination=none", "rollout_length=2", "clone_behaviour=true", "model.max_updates=20",
    "cloning.updates=20", "rollout_starts=100",
)  # fmt: skip
WITH_ADVERSARY = ("adversarial_weight=3e-4", "model_updates=10")


class Tank(gymnasium.Env):
    """A level that leaks and is filled; its actions and rewards are in some unit."""

    def __init__(self, unit: float = 1.0, offset: float = 0.0, reward: float = 1.0) -> None:
        self.unit, self.offset, self.reward = unit, offset, reward
        self.observation_space = gymnasium.spaces.Box(-10, 10, (2,))
        bounds = (offset - unit, offset + unit)
        self.action_space = gymnasium.spaces.Box(*bounds, (2,), np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.level = self.np_random.uniform(-1, 1, 2)
        return self.level.astype(np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(np.asarray(action, np.float64))
        self.level = 0.9 * self.level + 0.3 * (action - self.offset) / self.unit
        reward = -self.reward * float(np.square(self.level - 0.5).sum())
        return self.level.astype(np.float32), reward, False, False, {}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same random play in every kind of units, each as a folder."""
    folder = tmp_path_factory.mktemp("units")
    for name, (unit, offset, reward) in UNITS.items():
        kwargs = {"unit": unit, "offset": offset, "reward": reward}
        env_id = f"Tank{name.capitalize()}-v0"
        gymnasium.register(env_id, entry_point=Tank, max_episode_steps=20, kwargs=kwargs)
        env, rng, episodes = gymnasium.make(env_id), np.random.default_rng(0), []
        for seed in range(20):
            observations, actions, rewards = [env.reset(seed=seed)[0]], [], []
            for _ in range(20):
                actions.append(offset + unit * rng.uniform(-1, 1, 2))
                observation, gained, *_ = env.step(actions[-1])
                observations.append(observation)
                rewards.append(gained)
            flags = np.arange(20) == 19
            episodes.append(
                {"observations": np.stack(observations), "actions": np.stack(actions),
                 "rewards": np.array(rewards), "terminations": flags & False,
                 "truncations": flags}
            )  # fmt: skip
        spec = Bounded(offset - unit, offset + unit, shape=(2,))
        OfflineDataset.from_episodes(episodes, action_spec=spec, env_id=env_id, name="tank").memmap(
            folder / name
        )
    yield folder
    for name in UNITS:
        gymnasium.registry.pop(f"Tank{name.capitalize()}-v0")


@pytest.fixture
def run(
    data: Path, tmp_path: Path, run_recipe: Callable[..., None]
) -> Callable[[str, str], tuple[Path, list[dict[str, str]]]]:
    """Runs a recipe: its folder and its metrics."""

    def run(method: str, units: str) -> tuple[Path, list[dict[str, str]]]:
        folder = tmp_path / units
        words = [*WORDS, f"dataset={data / units}", f"run_dir={folder}"]
        words += WITH_MODEL if method in ("rambo", "mopo", "mobile", "combo") else ()
        # the tank's rows are few; MOBILE's temperature for the default task is in the data's unit
        words += ("agent.batch_size=128",) if method == "rebrac" else ()
        words += ("agent.fixed_alpha=0",) if method == "mobile" else ()
        words += WITH_ADVERSARY if method == "rambo" else ()
        run_recipe(tmp_path, method, *words)
        with (folder / "metrics.csv").open() as file:
            return folder, list(csv.DictReader(file))

    return run


def numbers(rows: list[dict[str, str]]) -> dict[str, np.ndarray]:
    return {
        key: np.array([float(row[key]) for row in rows]) for key in rows[0] if rows[0][key] != ""
    }


#: columns in the rewards' unit; the other ones know nothing of it
IN_REWARDS = {
    "alpha", "data_qvalue", "discounted_return_mean", "inconsistency", "mean_q",
    "model_advantage_mean", "model_advantage_std", "model_qvalue", "model_reward", "model_value",
    "penalized_qvalue", "return_mean", "return_std", "start_value",
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_units_change_what_is_shown_only(method: str, run: Callable[..., Any]) -> None:
    (plain, rows), (watts, others) = run(method, "plain"), run(method, "watts")
    want, got = numbers(rows), numbers(others)
    assert want.keys() == got.keys() and len(want) > 3
    for key, values in want.items():
        np.testing.assert_allclose(got[key], values, rtol=1e-4, atol=1e-6, err_msg=key)
    # the policies answer in the data's own units
    unit, offset, _ = UNITS["watts"]
    states = np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    action = load_policy(watts)(states)
    np.testing.assert_allclose((action - offset) / unit, load_policy(plain)(states), atol=1e-3)
    assert action.min() >= 0 and action.max() <= 50_000
    if method == "rambo":
        assert export_policy(load_policy(watts), watts / "policy.pt2") < 1e-5
        exported = torch.export.load(watts / "policy.pt2").module()(torch.as_tensor(states))
        np.testing.assert_allclose(exported.detach().numpy(), action, rtol=1e-4)
    if method in ("mopo", "rebrac"):  # whose coefficients are in the units of the data
        return
    cents, others = run(method, "cents")
    got = numbers(others)
    for key, values in want.items():
        unit = 1e6 if key in IN_REWARDS else 1.0
        np.testing.assert_allclose(got[key], unit * values, rtol=2e-3, atol=1e-4, err_msg=key)
    assert json.loads((cents / "results.json").read_text())["diverged"] is False
