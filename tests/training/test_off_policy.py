"""Importance-weighted estimates where the behaviour, Q and V are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from markov_chain import BACKWARD, FORWARD, GAMMA, REWARD, STATES, chain_data, true_values

from rambo_trl.training.off_policy import effective_sample_size, weighted_doubly_robust

#: how often the behaviour and the policy that is evaluated go forward
LOGGED, WANTED = 0.5, 0.8


class Episodes:
    """The chain's episodes with the log of the true ratios, and the true Q and V."""

    def __init__(self, episodes: int, seed: int = 0) -> None:
        data = chain_data(episodes, seed=seed, forward=LOGGED).transitions
        ends = data["next", "done"].flatten().nonzero().flatten().numpy() + 1
        state = data["observation"].argmax(-1).numpy()
        following = data["next", "observation"].argmax(-1).numpy()
        forward = data["action"].flatten().numpy() > 0
        ratio = np.where(forward, WANTED / LOGGED, (1 - WANTED) / (1 - LOGGED))
        v = true_values(np.full(STATES, WANTED))
        q = np.where(
            forward,
            (REWARD[1] + GAMMA * FORWARD[:, :STATES] @ v)[state],
            (REWARD[-1] + GAMMA * BACKWARD[:, :STATES] @ v)[state],
        )
        after = v[following] * ~data["next", "terminated"].flatten().numpy()

        def split(x: np.ndarray) -> list[np.ndarray]:
            return np.split(x, ends[:-1])

        self.rewards = split(data["next", "reward"].flatten().double().numpy())
        self.ratios, self.q = split(np.log(ratio)), split(q)
        self.v = [np.append(a, b[-1]) for a, b in zip(split(v[state]), split(after), strict=True)]
        self.truth = v.mean()  # episodes begin in every state alike
        self.behaviour = true_values(np.full(STATES, LOGGED)).mean()

    def estimate(self, factor: float = 1.0, ratio: float = 1.0):
        return weighted_doubly_robust(
            self.rewards,
            [ratio * x for x in self.ratios],
            [factor * x for x in self.q],
            # what follows a cut is only known from V
            [np.append(factor * x[:-1], x[-1]) for x in self.v],
            gamma=GAMMA,
        )


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    return Episodes(3000)


@pytest.mark.parametrize("factor", [1.0, 0.0, 0.5])
def test_right_ratios_give_the_value_whatever_q(episodes: Episodes, factor: float) -> None:
    assert abs(episodes.truth - episodes.behaviour) > 0.6
    assert episodes.estimate(factor).value == pytest.approx(episodes.truth, abs=0.25)


def test_the_right_q_gives_the_value_whatever_ratios(episodes: Episodes) -> None:
    assert episodes.estimate(ratio=0.0).value == pytest.approx(episodes.truth, abs=0.1)
    # with neither it is the behaviour's
    wrong = episodes.estimate(factor=0.0, ratio=0.0).value
    assert wrong == pytest.approx(episodes.behaviour, abs=0.15)


def test_the_right_q_takes_the_variance_away(episodes: Episodes) -> None:
    with_q, without = (episodes.estimate(factor).resampled for factor in (1.0, 0.0))
    assert with_q.std() < 0.9 * without.std()


def test_the_effective_sample_size_counts_the_episodes_that_carry_the_estimate() -> None:
    same = [np.zeros(3), np.zeros(5)]
    assert effective_sample_size(same) == pytest.approx(np.full(5, 2.0))
    one = [np.array([0.0, 0.0]), np.array([0.0, 1000.0])]
    assert effective_sample_size(one) == pytest.approx([2.0, 1.0])
    halves = [np.log([3.0]), np.log([1.0])]
    assert effective_sample_size(halves) == pytest.approx([16 / 10])
