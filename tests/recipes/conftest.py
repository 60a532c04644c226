"""A small data set, shared by the tests that run the recipes as programs."""

from __future__ import annotations

import warnings

import gymnasium
import minari
import pytest
from minari.data_collector import EpisodeBuffer

ENV_ID = "InvertedDoublePendulum-v5"


@pytest.fixture(scope="session")
def tiny_dataset() -> None:
    """A small Minari set of random play, as a user's own would lie on disk."""
    env = gymnasium.make(ENV_ID)
    env.action_space.seed(0)
    episodes = []
    for i in range(60):
        observation, _ = env.reset(seed=i)
        episode = EpisodeBuffer(
            id=i,
            observations=[observation],
            actions=[],
            rewards=[],
            terminations=[],
            truncations=[],
        )
        ended = False
        while not ended:
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            episode.observations.append(observation)
            episode.actions.append(action)
            episode.rewards.append(float(reward))
            episode.terminations.append(terminated)
            episode.truncations.append(truncated)
            ended = terminated or truncated
        episodes.append(episode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari asks for an author and a permalink
        minari.create_dataset_from_buffers("test/idp/tiny-v0", buffer=episodes, env=env)
    env.close()
