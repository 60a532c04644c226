"""DMSD: the equations, and NeoRL-2's own transitions."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest

from rambo_trl.data import OfflineDataset, make_environment
from rambo_trl.envs.dmsd import DMSDEnv


def seeded_start(episode: int) -> tuple[np.ndarray, np.ndarray]:
    """State and targets that NeoRL-2 drew for an episode: it seeded NumPy with its number."""
    draw = np.random.RandomState(episode)
    draw.uniform(size=8)  # of the masses, springs and dampers, whose bounds coincide
    targets = []
    for _ in range(2):
        own = [draw.uniform(-1.5, 1.5) for _ in range(draw.randint(1, 3))]
        targets.append((own[0], own[-1]))
    bounds = [0.25, 0.25, 0.1, 0.1]
    return np.array([draw.uniform(-b, b) for b in bounds]), np.array(targets).T


@pytest.mark.parametrize(("split", "episodes"), [("train", 1000), ("val", 200)])
def test_replays_the_published_episodes(
    neorl2_episodes: Callable, split: str, episodes: int
) -> None:
    logged = neorl2_episodes("DMSD", split)
    assert len(logged) == episodes
    env = DMSDEnv()
    for number, episode in enumerate(logged[:: 10 if split == "train" else 2]):
        state, targets = seeded_start(number * (10 if split == "train" else 2))
        observation, _ = env.reset(options={"state": state, "targets": targets})
        np.testing.assert_array_equal(observation, episode["obs"][0])
        for action, wanted, reward in zip(
            episode["action"], episode["next_obs"], episode["reward"], strict=True
        ):
            observation, given, terminated, truncated, _ = env.step(action)
            np.testing.assert_allclose(observation, wanted, atol=1e-6)
            assert given == pytest.approx(reward, abs=1e-4)
            assert not terminated and not truncated


def test_the_equations() -> None:
    """A step of Newton's second law, forces added up one by one."""
    env, (x1, x2, v1, v2) = DMSDEnv(), (0.3, -0.2, 0.5, 0.1)
    env.reset(options={"state": (x1, x2, v1, v2), "targets": [[1.0, -1.0], [0.5, 0.25]]})
    observation, reward, *_ = env.step(np.array([0.5, -2.0]))  # the second one is clipped
    left, middle, right = (-2 * x1 - 4 * v1), (2 * (x2 - x1) + 4 * (v2 - v1)), (-2 * x2 - 4 * v2)
    after = [x1 + 0.2 * v1, x2 + 0.2 * v2]
    after += [v1 + 0.2 / 20 * (left + middle + 15), v2 + 0.2 / 20 * (right - middle - 30)]
    np.testing.assert_allclose(observation, [*after, 1.0, -1.0], rtol=1e-6)
    wanted = -np.log(abs(after[0] - 1) + 0.01) - np.log(abs(after[1] + 1) + 0.01)
    assert reward == pytest.approx(wanted)


def test_targets_change_in_the_middle_of_half_of_the_episodes_at_most() -> None:
    env = make_environment("rambo_trl/DMSD-v0")
    changed, starts = [], []
    for seed in range(400):
        observation, _ = env.reset(seed=seed)
        starts.append(observation)
        steps, ended, targets = 0, False, [observation[4:]]
        while not ended and (steps < 51 or seed == 0):
            observation, _, _, ended, _ = env.step(env.action_space.low)
            targets.append(observation[4:])
            steps += 1
        differs = np.array(targets[1:]) != np.array(targets[:-1])
        assert set(np.nonzero(differs)[0]) <= {49}  # with the 50th step
        changed.append(differs[49])
        assert seed or (steps == 100 and ended)
    assert np.mean(changed) == pytest.approx(0.5, abs=0.06)
    largest = np.abs(starts).max(axis=0)
    assert (largest <= [0.25, 0.25, 0.1, 0.1, 1.5, 1.5]).all()
    assert (largest > [0.24, 0.24, 0.09, 0.09, 1.4, 1.4]).all()
    np.testing.assert_array_equal(env.reset(seed=7)[0], starts[7])


def test_it_is_registered_with_its_reference_scores(neorl2_episodes: Callable) -> None:
    assert gymnasium.spec("rambo_trl/DMSD-v0").max_episode_steps == 100
    neorl2_episodes("DMSD", "train")
    data = OfflineDataset.load("neorl2/DMSD")
    assert data.environment == "rambo_trl/DMSD-v0"
    assert data.behaviour_score == pytest.approx(56.642698, abs=1e-4)  # as published
