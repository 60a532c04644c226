"""Discounted logged returns, the best episodes' rows, and the first steps of episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.data.returns import best_episode_rows, discounted_returns, early_rows


def episodes(
    lengths: list[int], rewards: list[float], ends: str
) -> tuple[OfflineDataset, TensorDict]:
    """Episodes of equal rewards, each (t)erminated, (c)ut or without an end flag."""
    made = [
        {
            "observations": np.random.default_rng(i).normal(size=(length + 1, 1)),
            "actions": np.zeros((length, 1)),
            "rewards": np.full(length, reward),
            "terminations": np.arange(length) == (length - 1 if end == "t" else -1),
            "truncations": np.arange(length) == (length - 1 if end == "c" else -1),
        }
        for i, (length, reward, end) in enumerate(zip(lengths, rewards, ends, strict=True))
    ]
    data = OfflineDataset.from_episodes(made, action_spec=Bounded(-1, 1, shape=(1,)))
    return data, data.transitions


def test_discounted_returns_are_summed_to_an_end_and_go_on_past_a_cut() -> None:
    rewards, gamma = torch.randn(9).double(), 0.9
    done = torch.tensor([0, 0, 1, 0, 1, 0, 0, 0, 0]).bool()  # the last row has no flag
    terminated = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0, 0]).bool()
    step = TensorDict(reward=rewards, terminated=terminated, done=done, batch_size=[9])
    rows = TensorDict(next=step.unsqueeze(-1).auto_batch_size_(1), batch_size=[9])
    got = discounted_returns(rows, gamma).flatten()
    want = []
    for row in range(9):
        end = next(e for e in (2, 4, 8) if row <= e)
        begin = {2: 0, 4: 3, 8: 5}[end]
        value = sum(gamma ** (t - row) * rewards[t] for t in range(row, end + 1))
        if end != 2:
            after = rewards[begin : end + 1].mean() / (1 - gamma)
            value += gamma ** (end + 1 - row) * after
        want.append(float(value))
    torch.testing.assert_close(got, torch.tensor(want))
    with pytest.raises(ValueError, match="gamma"):
        discounted_returns(rows, 1.0)


def test_the_best_episodes_hold_the_share_of_the_rows() -> None:
    data, _ = episodes([10, 5, 20, 5], [1.0, 4.0, 0.1, 3.0], "tttt")  # returns 10, 20, 2, 15
    assert best_episode_rows(data, 0.1).tolist() == [10, 11, 12, 13, 14]
    assert best_episode_rows(data, 0.2).tolist() == [*range(10, 15), *range(35, 40)]
    assert len(best_episode_rows(data, 1.0)) == 40
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share"):
            best_episode_rows(data, share)


def test_without_whole_episodes_all_rows_are_as_good() -> None:
    data, _ = episodes([10], [1.0], "-")  # no end flag
    assert len(data.behaviour_returns) == 0
    assert best_episode_rows(data, 0.1).tolist() == list(range(10))


def test_early_rows_are_the_first_of_every_episode() -> None:
    _, rows = episodes([3, 1, 4], [1.0, 1.0, 1.0], "tct")
    assert early_rows(rows, 1).tolist() == [0, 3, 4]
    assert early_rows(rows, 2).tolist() == [0, 1, 3, 4, 5]
    assert early_rows(rows, 10).tolist() == list(range(8))
