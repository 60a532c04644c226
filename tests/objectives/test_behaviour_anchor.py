"""The term that holds the actor to the data's actions."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import SACLoss

from rambo_trl.modules import make_actor, make_qvalue
from rambo_trl.objectives import BehaviourAnchorLoss

SPEC = Bounded(-1, 1, shape=(2,))


def make_agent() -> SACLoss:
    critic = make_qvalue(3, 2, hidden_sizes=(8,))
    return SACLoss(make_actor(3, SPEC, hidden_sizes=(8,)), critic, action_spec=SPEC)


def make_rows(num: int = 16) -> TensorDict:
    return TensorDict(observation=torch.randn(num, 3), action=SPEC.rand((num,)), batch_size=[num])


def test_the_loss_is_computed_as_written() -> None:
    agent, rows = make_agent(), make_rows()
    out = BehaviourAnchorLoss(agent, weight=3.0)(rows)
    with agent.actor_network_params.to_module(agent.actor_network):
        mode = agent.actor_network(rows.copy())["loc"].tanh()
    distance = ((mode - rows["action"]) ** 2).sum(-1).mean() / 2
    torch.testing.assert_close(out["loss_anchor"], 3.0 * distance)
    torch.testing.assert_close(out["anchor_distance"], distance)


def test_only_the_actor_is_trained_and_it_belongs_to_the_agent() -> None:
    agent, rows = make_agent(), make_rows()
    loss = BehaviourAnchorLoss(agent, weight=1.0)
    assert not list(loss.parameters()) and not loss.state_dict()
    loss(rows)["loss_anchor"].backward()
    assert all(p.grad is not None for p in agent.actor_network_params.parameters())
    assert all(p.grad is None for p in agent.qvalue_network_params.parameters())


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        BehaviourAnchorLoss(make_agent(), weight=-1.0)
