"""Critics that know the logged returns before they bootstrap."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import SACLoss

from rambo_trl.modules import make_actor, make_qvalue
from rambo_trl.training.critic_regression import critic_values, regress_critics


@pytest.mark.parametrize("layer_norm", [False, True])
def test_every_critic_values_the_rows_own_actions(layer_norm: bool) -> None:
    spec = Bounded(-1, 1, shape=(2,))
    critic = make_qvalue(3, 2, hidden_sizes=(8, 6), layer_norm=layer_norm)
    agent = SACLoss(make_actor(3, spec, hidden_sizes=(8,)), critic, action_spec=spec)
    rows = TensorDict(observation=torch.randn(16, 3), action=spec.rand((16,)), batch_size=[16])
    values = []
    for params in agent.qvalue_network_params.unbind(0):
        with params.to_module(agent.qvalue_network):
            values.append(agent.qvalue_network(rows.copy())["state_action_value"])
    torch.testing.assert_close(critic_values(agent, rows), torch.stack(values))


def test_critics_are_fitted_to_the_logged_returns() -> None:
    # one state, rewards of a, episodes of one terminated row: the return is the action
    torch.manual_seed(0)
    action, end = 2 * torch.rand(400, 1) - 1, torch.ones(400, 1, dtype=torch.bool)
    step = TensorDict(reward=3 * action, terminated=end, done=end, batch_size=[400])
    rows = TensorDict(observation=torch.zeros(400, 2), action=action, next=step, batch_size=[400])
    spec = Bounded(-1, 1, shape=(1,))
    critic = make_qvalue(2, 1, hidden_sizes=(32,), layer_norm=True)
    loss = SACLoss(make_actor(2, spec, hidden_sizes=(8,)), critic, action_spec=spec)
    before = [p.clone() for p in loss.actor_network_params.parameters()]
    metrics = regress_critics(loss, rows, gamma=0.99, updates=400, batch_size=64, lr=1e-2)
    assert metrics["loss_returns"] < 0.05  # the variance of the returns is 3
    torch.testing.assert_close(critic_values(loss, rows)[1], 3 * action, atol=0.3, rtol=0)
    after = list(loss.actor_network_params.parameters())
    assert all(map(torch.equal, before, after))
    for online, target in zip(
        loss.qvalue_network_params.values(True, True),
        loss.target_qvalue_network_params.values(True, True),
        strict=True,
    ):
        assert torch.equal(online, target)
