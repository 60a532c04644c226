"""A small Markov decision process whose values are known in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset

__all__ = ["GAMMA", "STATES", "chain_data", "chain_policy", "true_values"]

GAMMA, STATES = 0.9, 4
#: P(s' | s, a) by the action's sign; the last column is the end
FORWARD = np.array(
    [
        [0.1, 0.8, 0.1, 0.0, 0.0],
        [0.1, 0.1, 0.7, 0.1, 0.0],
        [0.0, 0.1, 0.1, 0.7, 0.1],
        [0.1, 0.0, 0.0, 0.4, 0.5],
    ]
)
BACKWARD = np.array(
    [
        [0.9, 0.1, 0.0, 0.0, 0.0],
        [0.8, 0.1, 0.1, 0.0, 0.0],
        [0.1, 0.7, 0.2, 0.0, 0.0],
        [0.0, 0.2, 0.6, 0.2, 0.0],
    ]
)
REWARD = {1: np.array([0.0, 0.5, 1.0, 3.0]), -1: np.array([0.6, 0.2, 0.0, 1.0])}


def true_values(forward: np.ndarray, *, ends: bool = True) -> np.ndarray:
    """V = (I - gamma P)^-1 r [STATES] of a policy that goes forward with these probabilities.

    Without ``ends`` what ends stays in its last state, as the data's rows show it, and goes on.
    """
    share = forward[:, None]
    whole = share * FORWARD + (1 - share) * BACKWARD
    transition = whole[:, :STATES]
    if not ends:
        transition = transition + np.diag(whole[:, STATES])
    reward = forward * REWARD[1] + (1 - forward) * REWARD[-1]
    return np.linalg.solve(np.eye(STATES) - GAMMA * transition, reward)


def chain_policy(signs: list[int]) -> Any:
    """A deterministic policy: the sign of its action in each state."""

    def act(observation: Tensor) -> Tensor:
        return 0.5 * observation @ torch.tensor(signs, dtype=torch.float32)[:, None]

    return act


def chain_data(
    episodes: int, *, seed: int = 0, limit: int = 20, forward: float = 0.5
) -> OfflineDataset:
    """Episodes of a behaviour that goes forward by chance, cut off after ``limit`` steps."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(episodes):
        states, ended = [int(rng.integers(STATES))], False
        actions: list[float] = []
        rewards: list[float] = []
        while not ended and len(actions) < limit:
            sign = 1 if rng.random() < forward else -1
            transition = FORWARD if sign == 1 else BACKWARD
            actions.append(sign * rng.uniform(0.1, 1))
            rewards.append(REWARD[sign][states[-1]])
            following = int(rng.choice(STATES + 1, p=transition[states[-1]]))
            ended = following == STATES
            states.append(states[-1] if ended else following)
        last = np.arange(len(actions)) == len(actions) - 1
        made.append(
            {
                "observations": np.eye(STATES)[states],
                "actions": np.array(actions)[:, None],
                "rewards": np.array(rewards),
                "terminations": last & ended,
                "truncations": last & (not ended),
            }
        )
    return OfflineDataset.from_episodes(
        made, action_spec=Bounded(-1, 1, shape=(1,)), normalize=False
    )
