"""Episodes in the real environment become rows like the data's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.envs.utils import check_env_specs
from torchrl.objectives import SACLoss, SoftUpdate

from rambo_trl.collectors import EpisodeCollector
from rambo_trl.data import OfflineDataset
from rambo_trl.envs import make_real_env
from rambo_trl.modules import make_actor, make_qvalue

LOW, HIGH = (-2.0, 0.0), (3.0, 10.0)
played: list[dict[str, Any]] = []


class Valve(gymnasium.Env):
    """Fills a vessel: terminates when it is full, truncates after seven steps, or does both."""

    observation_space = Box(-100, 100, (2, 1))
    action_space = Box(np.array(LOW, np.float32), np.array(HIGH, np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seed, self.steps = seed, 0
        self.level = np.random.default_rng(seed).normal(size=(2, 1))
        played.append({"seed": seed, "steps": []})
        return self.level.copy(), {}

    def step(self, action: Any) -> Any:
        before = self.level.copy()
        self.level = self.level + 0.1 * np.asarray(action, np.float64).reshape(2, 1)
        self.steps += 1
        reward = float(action[0] - self.level[1, 0])
        full, late = bool(self.level[1, 0] > 3.0), self.steps == 7
        played[-1]["steps"].append((before, np.array(action), reward, self.level.copy(), full))
        return self.level.copy(), reward, full, late, {}


@pytest.fixture(scope="module")
def env_id() -> Iterator[str]:
    gymnasium.register("test/Valve-v0", Valve, max_episode_steps=1000)
    yield "test/Valve-v0"
    gymnasium.registry.pop("test/Valve-v0")


@pytest.fixture
def data(env_id: str) -> OfflineDataset:
    played.clear()
    generator = np.random.default_rng(0)
    episode = {
        "observations": generator.normal(5, 3, size=(51, 2)),
        "actions": generator.uniform(LOW, HIGH, size=(50, 2)),
        "rewards": generator.normal(4, 2, size=50),
        "terminations": np.zeros(50, bool),
        "truncations": np.arange(50) == 49,
    }
    spec = Bounded(torch.tensor(LOW), torch.tensor(HIGH), (2,))
    return OfflineDataset.from_episodes(
        [episode], action_spec=spec, env_id=env_id, reward_shift=1.5, reward_scale="auto"
    )


def collector(data: OfflineDataset, seed: int = 5) -> EpisodeCollector:
    torch.manual_seed(0)
    actor = make_actor(2, data.action_spec, hidden_sizes=(8,))
    return EpisodeCollector(make_real_env(data, seed=seed), actor)


def test_the_environment_is_one_of_torchrl_s_in_the_data_s_units(data: OfflineDataset) -> None:
    env = make_real_env(data)
    check_env_specs(env)
    assert env.action_spec.space.low.tolist() == [-1, -1]
    assert env.action_spec.space.high.tolist() == [1, 1]
    data.has_simulator = False
    with pytest.raises(ValueError, match="names no environment to act in"):
        make_real_env(data)


def test_rows_are_what_was_played_in_the_data_s_units(data: OfflineDataset) -> None:
    rows = collector(data).collect(60)
    steps = [step for episode in played if episode["steps"] for step in episode["steps"]]
    assert 60 <= len(rows) == len(steps)
    before, action, reward, after, full = map(np.array, zip(*steps, strict=True))
    mean, std = data.observation_mean, data.observation_std
    for key, known in (("observation", before), (("next", "observation"), after)):
        raw = rows[key] * std + mean
        np.testing.assert_allclose(raw, known.reshape(-1, 2), atol=1e-5)
    np.testing.assert_allclose(data.denormalize_action(rows["action"]), action, atol=1e-5)
    # the actions use the whole range: were they played as they are, they would stay in [-1, 1]
    assert rows["action"].abs().max() <= 1 and action[:, 1].max() > 5 and action[:, 0].min() < -1
    scaled = (reward + 1.5) / data.reward_scale
    np.testing.assert_allclose(rows["next", "reward"].flatten(), scaled, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rows["next", "terminated"].flatten(), full)


def test_ends_are_terminal_or_truncated_as_in_the_data(data: OfflineDataset) -> None:
    rows = collector(data).collect(300)
    terminated, truncated, done = (
        rows["next", key].flatten() for key in ("terminated", "truncated", "done")
    )
    assert terminated.any() and truncated.any() and not (terminated & truncated).any()
    assert (done == terminated | truncated).all() and done[-1]
    lengths = done.nonzero().flatten().diff()
    late = terminated[done][1:] & (lengths == 7)
    assert late.any()  # full and out of time at once: it counts as full
    assert (lengths[truncated[done][1:]] == 7).all()
    # within an episode a row's next observation is the next row's observation, at its end not
    follows = (rows["next", "observation"][:-1] == rows["observation"][1:]).all(-1)
    assert (follows == ~done[:-1]).all()


def test_a_critic_bootstraps_from_truncated_rows_and_not_from_terminal_ones(
    data: OfflineDataset,
) -> None:
    rows = collector(data).collect(300)
    actor = make_actor(2, data.action_spec, hidden_sizes=(8,))
    sac = SACLoss(actor, make_qvalue(2, 2, hidden_sizes=(8,)), loss_function="l2")
    sac.make_value_estimator(gamma=0.9)
    SoftUpdate(sac, tau=0.1)

    def change(row: TensorDict) -> float:
        """How much a critic's loss depends on the state that the row leads to."""
        losses = []
        for shift in (0.0, 3.0):
            torch.manual_seed(0)
            moved = row.clone()
            moved["next", "observation"] += shift
            losses.append(sac(moved)["loss_qvalue"].item())
        return abs(losses[1] - losses[0])

    ends = {key: rows["next", key].flatten() for key in ("terminated", "truncated")}
    assert change(rows[ends["terminated"]]) == 0
    assert change(rows[ends["truncated"]]) > 1e-3


def test_every_episode_has_its_own_seed_and_a_restored_collector_goes_on(
    data: OfflineDataset,
) -> None:
    first = collector(data)
    first.collect(30)
    state, random = first.state_dict(), torch.get_rng_state()
    assert state == {"episodes": first.episodes} and first.episodes > 3
    seeds = [episode["seed"] for episode in played if episode["steps"]]
    assert seeds == list(range(5, 5 + first.episodes))
    following = first.collect(20)
    second = collector(data)
    second.load_state_dict(state)
    torch.set_rng_state(random)
    assert (second.collect(20) == following).all() and second.episodes == first.episodes
    other = collector(data, seed=6).collect(20)
    assert not torch.equal(other["observation"][0], following["observation"][0])


def test_the_policy_s_current_weights_act(data: OfflineDataset) -> None:
    player = collector(data)
    player.collect(5)
    last = [m for m in player.policy.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([20.0, -20.0, -20.0, -20.0]))  # at the bounds, hardly spread
    rows = player.collect(5)
    assert (rows["action"] - torch.tensor([1.0, -1.0])).abs().max() < 1e-3
