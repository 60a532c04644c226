from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import check_env_specs

from rambo_trl.envs.single_transition import (
    DATA_INTERVALS,
    SingleTransitionEnv,
    expected_reward,
    make_single_transition_data,
)


@pytest.mark.parametrize("batch_size", [(), (5,), (2, 3)])
def test_specs_hold(batch_size):
    check_env_specs(SingleTransitionEnv(batch_size=batch_size))


@pytest.mark.parametrize("batch_size", [(), (5,), (2, 3)])
def test_an_episode_is_one_step_long(batch_size):
    rollout = SingleTransitionEnv(batch_size=batch_size).rollout(10)

    assert rollout.shape == (*batch_size, 1)
    assert (rollout["observation"] == 0).all()
    assert rollout["next", "terminated"].all()
    assert rollout["next", "done"].all()
    torch.testing.assert_close(rollout["next", "reward"], rollout["next", "observation"])


def test_an_env_without_batch_size_steps_any():
    env = SingleTransitionEnv()
    td = env.reset(TensorDict(batch_size=[7]))
    td["action"] = torch.zeros(7, 1)

    assert env.step(td)["next", "reward"].shape == (7, 1)


def test_a_seed_repeats_the_successors_and_leaves_the_global_stream_alone():
    env = SingleTransitionEnv(batch_size=[4])
    rewards = []
    for _ in range(2):
        env.set_seed(3)
        td = env.reset().set("action", torch.zeros(4, 1))
        before = torch.get_rng_state()
        rewards.append(env.step(td)["next", "reward"])
        assert torch.equal(before, torch.get_rng_state())

    torch.testing.assert_close(*rewards, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("action", "mean"),
    [
        (-1.0, 0.5),
        (-0.81, 0.5),
        (-0.79, 1.0),
        (-0.66, 1.0),
        (-0.64, 0.5),
        (-0.1, 0.5),
        (0.04, 0.5),
        (0.06, 1.25),
        (0.19, 1.25),
        (0.21, 0.5),
        (0.64, 0.5),
        (0.66, 1.5),
        (0.79, 1.5),
        (0.81, 0.5),
        (1.0, 0.5),
    ],
)
def test_rewards_match_their_regions(action, mean):
    assert expected_reward(torch.tensor([action])).item() == mean


def test_rewards_scatter_around_their_mean():
    env = SingleTransitionEnv(batch_size=[2, 20_000])
    env.set_seed(0)
    action = torch.tensor([-0.7, 0.7])[:, None, None].expand(2, 20_000, 1)
    reward = env.step(env.reset().set("action", action))["next", "reward"].squeeze(-1)
    # five standard errors of a mean and of a standard deviation
    assert reward.mean(1).tolist() == pytest.approx([1.0, 1.5], abs=5 * 0.2 / 20_000**0.5)
    assert reward.std(1).tolist() == pytest.approx([0.2, 0.2], abs=5 * 0.2 / 40_000**0.5)


def test_data_is_uniform_over_the_four_intervals():
    data = make_single_transition_data(40_000)

    assert data.shape == (40_000,)
    action = data["action"]
    covered = 0
    for low, high in DATA_INTERVALS:
        inside = action[(action >= low - 1e-6) & (action <= high + 1e-6)]
        covered += len(inside)
        assert len(inside) == pytest.approx(10_000, abs=5 * (40_000 * 0.25 * 0.75) ** 0.5)
        # of a uniform distribution: the middle, and a width of sqrt(12) standard deviations
        assert inside.mean().item() == pytest.approx((low + high) / 2, abs=1e-3)
        assert inside.std().item() * 12**0.5 == pytest.approx(high - low, abs=1e-3)
    assert covered == 40_000


def test_data_is_what_the_env_would_have_recorded():
    data = make_single_transition_data(40_000, generator=torch.Generator().manual_seed(1))

    assert (data["observation"] == 0).all()
    assert data["next", "terminated"].all()
    assert data["next", "done"].all()
    assert not data["next", "truncated"].any()
    torch.testing.assert_close(data["next", "reward"], data["next", "observation"])
    noise = data["next", "reward"] - expected_reward(data["action"])
    assert noise.mean().item() == pytest.approx(0.0, abs=5e-3)
    assert noise.std().item() == pytest.approx(0.2, abs=4e-3)


def test_the_generator_alone_decides_the_data():
    rows = [
        make_single_transition_data(10, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]

    assert (rows[0] == rows[1]).all()


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="num_transitions must be at least 1, got 0"):
        make_single_transition_data(0)
