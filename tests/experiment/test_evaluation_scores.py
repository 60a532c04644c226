"""What runs record of critics and of evaluations, against direct computations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SACLoss

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.evaluation import (
    Evaluation,
    EvaluationResult,
    evaluation_seed,
    mode_values,
    rollout_episodes,
    write_policy,
)
from rambo_trl.experiment.options import RunOptions
from rambo_trl.experiment.policy import load_policy
from rambo_trl.modules import make_actor, make_qvalue

SPEC = Bounded(-2, 2, shape=(1,))


def test_the_lowest_critic_values_the_mode() -> None:
    actor, critic = make_actor(3, SPEC, hidden_sizes=(8,)), make_qvalue(3, 1, hidden_sizes=(8,))
    loss = SACLoss(actor, critic, num_qvalue_nets=3, action_spec=SPEC)
    observation = torch.randn(50, 3)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        got = mode_values(loss, actor, observation)
    location = actor.get_submodule("module.0.module.0")(observation)[:, :1]
    rows = torch.cat([2 * location.tanh(), observation], dim=-1)
    weights = loss.qvalue_network_params
    each = []
    for i in range(3):
        values = TensorDict(observation=observation, action=rows[:, :1], batch_size=[50])
        with weights[i].data.to_module(loss.qvalue_network, preserve_module_state=False):
            each.append(loss.qvalue_network(values)["state_action_value"])
    want = torch.stack(each).amin(dim=0).detach()
    torch.testing.assert_close(got, want)
    assert (torch.stack(each).argmin(dim=0) != 0).any(), "not always the first critic"


def evaluation(actor: Any, dataset: Any, **settings: Any) -> Evaluation:
    return Evaluation(actor, dataset, RunOptions(epochs=1, **settings))


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_discounted_returns_are_of_the_rewards_that_are_trained_on(shift: float) -> None:
    dataset: Any = SimpleNamespace(
        observation_layout=None,
        environment=None,
        reference_scores=None,
        reward_shift=shift,
        normalized_score=lambda value: None,
    )
    result = EvaluationResult(np.array([1.0, 2.0]), np.array([1, 2]), np.array([1.0, 1.5]))
    row = evaluation(make_actor(3, SPEC), dataset, gamma=0.5)._scores(result)
    # rewards 1 + shift; 1 + shift, 1 + shift
    assert row["discounted_return_mean"] == pytest.approx((1 + shift) * (1 + 1.5) / 2)
    assert row["return_mean"] == 1.5


def test_an_evaluation_plays_the_policy_that_is_written(tmp_path: Path) -> None:
    # states that are not normalised, or twice, are answered otherwise
    spec = Bounded(-3, 3, shape=(1,))
    rows = TensorDict(
        observation=1 + 0.2 * torch.randn(50, 4),
        action=torch.zeros(50, 1),
        next=TensorDict(
            observation=torch.zeros(50, 4),
            reward=torch.rand(50, 1),
            terminated=torch.ones(50, 1, dtype=torch.bool),
            batch_size=[50],
        ),
        batch_size=[50],
    )
    dataset = OfflineDataset(rows, action_spec=spec, env_id="InvertedPendulum-v5")
    actor = make_actor(4, dataset.action_spec, hidden_sizes=[4])
    write_policy(tmp_path / "p.safetensors", actor, dataset, 0)
    policy = load_policy(tmp_path / "p.safetensors")
    of_epochs = evaluation(actor, dataset, evaluation_episodes=3)
    seed = evaluation_seed(0) + 2 * 3
    want = rollout_episodes(policy, "InvertedPendulum-v5", num_episodes=3, seed=seed)
    assert of_epochs(2)["return_mean"] == want.return_mean

    def raw(observation: np.ndarray) -> np.ndarray:
        return policy(dataset.denormalize(torch.as_tensor(observation).float()).numpy())

    other = rollout_episodes(raw, "InvertedPendulum-v5", num_episodes=3, seed=seed)
    assert other.return_mean != want.return_mean
