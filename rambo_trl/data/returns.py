"""What was logged after each row, and which episodes were the best."""

from __future__ import annotations

import numpy as np
import torch
from scipy.signal import lfilter
from tensordict import TensorDictBase
from torch import Tensor

from rambo_trl.data.transition_data import TransitionData

__all__ = ["best_episode_rows", "discounted_returns", "early_rows"]


def discounted_returns(transitions: TensorDictBase, gamma: float) -> Tensor:
    """The discounted return that was logged from each row to its episode's end.

    Where an episode was cut off rather than terminated, what follows is taken to be its own mean
    reward for ever.

    Args:
        transitions: rows [N] of episodes one after another, as in
            :attr:`~rambo_trl.data.OfflineDataset.transitions`.
        gamma: discount factor, below 1.

    Returns:
        [N, 1], in the unit of the rewards.

    Raises:
        ValueError: if the discount factor is not in [0, 1).
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"discounted returns need a gamma in [0, 1), got {gamma}")
    reward = transitions["next", "reward"].double().flatten().numpy()
    terminated = transitions["next", "terminated"].flatten().numpy()
    done = transitions["next", "done"].flatten().numpy().copy()
    done[-1] = True
    ends = done.nonzero()[0] + 1
    returns = np.empty_like(reward)
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        episode = reward[begin:end]
        # what follows the last row; then row by row backwards, a filter of the first order
        after = 0.0 if terminated[end - 1] else float(episode.mean()) / (1 - gamma)
        backwards, _ = lfilter([1.0], [1.0, -gamma], episode[::-1], zi=[gamma * after])
        returns[begin:end] = backwards[::-1]
    return torch.from_numpy(returns).float()[:, None]


def best_episode_rows(data: TransitionData, share: float) -> Tensor:
    """The rows of the episodes with the highest returns, as in 10 % behaviour cloning.

    Episodes are taken in the order of their returns until they hold the wanted share of the rows
    of all whole episodes (Chen et al. 2021, https://arxiv.org/abs/2106.01345, sec. 5.1).

    Args:
        data: the data.
        share: in (0, 1].

    Returns:
        Row numbers [M], ascending; all rows where ``share`` is 1 or no episode is whole.

    Raises:
        ValueError: if the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of the episodes must lie in (0, 1], got {share}")
    if share == 1 or len(data.behaviour_returns) == 0:
        return torch.arange(len(data))
    best = data.whole_episodes[np.argsort(-data.behaviour_returns, kind="stable")]
    rows = np.cumsum(best[:, 1] - best[:, 0])
    taken = best[: int(np.searchsorted(rows, share * rows[-1])) + 1]
    return torch.cat([torch.arange(first, end) for first, end in taken[taken[:, 0].argsort()]])


def early_rows(transitions: TensorDictBase, num_steps: int) -> Tensor:
    """Which rows are among the first steps of their episode.

    Args:
        transitions: rows [N] of episodes one after another.
        num_steps: how many steps of each episode.

    Returns:
        Row numbers [M], ascending.
    """
    done = transitions["next", "done"].flatten()
    begins = torch.cat([done.new_ones(1), done[:-1]])
    index = torch.arange(len(done))
    first = torch.where(begins, index, 0).cummax(0).values
    return (index - first < num_steps).nonzero().flatten()
